"""The host tier runs the real ComfyUI in this process."""

import pack

pack.load_host()
