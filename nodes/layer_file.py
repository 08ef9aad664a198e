"""Save Layers and Load Layers: a layered edit as one file."""

import os

import folder_paths
from comfy_api.latest import io, ui
from typing_extensions import override

from ..fusion import layer_file
from .types import Layers

CATEGORY = "latent layers/layers"


def _saved_files() -> list[str]:
    """Layer files in the host's input and output folders, named as the host does: with the folder, if not input."""
    folders = (("", folder_paths.get_input_directory()), (" [output]", folder_paths.get_output_directory()))
    found = []
    for annotation, top in folders:
        paths = [os.path.join(folder, name) for folder, _, names in os.walk(top) for name in names]
        files = [os.path.relpath(path, top) for path in paths if path.lower().endswith(layer_file.SUFFIX)]
        found += [file.replace(os.sep, "/") + annotation for file in sorted(files)]
    return found


class SaveLayers(io.ComfyNode):
    """IMAGE x EDIT_LAYERS -> a file."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentLayersSaveLayers",
            display_name=layer_file.SAVE,
            category=CATEGORY,
            description="Saves a layered edit, that is the picture and all layers with their masks and places, as one "
            "file in the output folder. Load Layers opens it again exactly as it was.",
            search_aliases=["export layers", "write layers", "save edit", "save masks", "zip"],
            inputs=[
                io.Image.Input("image", tooltip="The picture that is edited: one, not a batch."),
                Layers.Input("layers", tooltip="The layers of the edit."),
                io.String.Input(
                    "filename_prefix",
                    default="layers/edit",
                    tooltip="Folder within the output folder, and how the file's name starts; a number follows. "
                    "%year% and the like work as in Save Image.",
                ),
            ],
            outputs=[io.String.Output(display_name="file", tooltip="The file's name, as Load Layers lists it.")],
            is_output_node=True,
        )

    @classmethod
    @override
    def execute(cls, image, layers, filename_prefix="layers/edit") -> io.NodeOutput:
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory(), image.shape[2], image.shape[1]
        )
        file = f"{name}_{counter:05}_{layer_file.SUFFIX}"
        while os.path.exists(os.path.join(folder, file)):  # the host counts from 1 where a prefix ends in a slash
            counter += 1
            file = f"{name}_{counter:05}_{layer_file.SUFFIX}"
        layer_file.save(os.path.join(folder, file), image, layers)
        saved = ui.SavedResult(file, subfolder, io.FolderType.output)
        annotated = os.path.join(subfolder, file).replace(os.sep, "/") + " [output]"
        return io.NodeOutput(annotated, ui={**ui.PreviewImage(image).as_dict(), "files": [saved]})


class LoadLayers(io.ComfyNode):
    """A file -> IMAGE, EDIT_LAYERS."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentLayersLoadLayers",
            display_name=layer_file.LOAD,
            category=CATEGORY,
            description="Opens a layered edit that Save Layers has written, exactly as it was: the picture and all "
            "layers with their masks and places.",
            search_aliases=["import layers", "open layers", "load edit", "reopen edit", "zip"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=_saved_files(),
                    tooltip="A layer file in the input or output folder. Press R to list files that are new.",
                )
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The picture that is edited."),
                Layers.Output(display_name="layers", tooltip="The layers of the edit."),
            ],
        )

    @classmethod
    @override
    def validate_inputs(cls, file: str | None) -> bool | str:
        # None: another node will say, and loading checks again
        if file is None or folder_paths.exists_annotated_filepath(file):
            return True
        return (
            f"{file!r} is not in the input or output folder; copy it into the input folder, or choose another file "
            "(press R to list them again)"
        )

    @classmethod
    @override
    def fingerprint_inputs(cls, file: str | None) -> str:
        if file is None:
            return ""
        found = os.stat(folder_paths.get_annotated_filepath(file))
        return f"{found.st_mtime_ns} {found.st_size}"

    @classmethod
    @override
    def execute(cls, file) -> io.NodeOutput:
        return io.NodeOutput(*layer_file.load(folder_paths.get_annotated_filepath(file)))


NODES = [SaveLayers, LoadLayers]
