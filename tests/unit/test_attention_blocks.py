"""The block-selection language, on the layouts of SD 1.x and SDXL."""

import pytest

from latent_layers.attention.blocks import Block, describe, select


def layout(*parts: tuple[str, int, int, int]) -> list[Block]:
    return [Block(side, number, depth, level) for side, number, deep, level in parts for depth in range(deep)]


SD15 = layout(
    *(("input", number, 1, level) for number, level in ((1, 0), (2, 0), (4, 1), (5, 1), (7, 2), (8, 2))),
    ("middle", 0, 1, 3),
    *(("output", number, 1, level) for number, level in zip(range(3, 12), (2, 2, 2, 1, 1, 1, 0, 0, 0), strict=True)),
)
SDXL = layout(
    *(("input", number, deep, level) for number, deep, level in ((4, 2, 1), (5, 2, 1), (7, 10, 2), (8, 10, 2))),
    ("middle", 0, 10, 2),
    *(("output", number, 10, 2) for number in range(3)),
    *(("output", number, 2, 1) for number in range(3, 6)),
)


@pytest.mark.parametrize(
    ("text", "blocks", "count"),
    [
        ("all", SD15, 16),
        ("all", SDXL, 70),
        ("d1-d5, m0 ,U3-u8", SD15, 4 + 1 + 6),
        ("d1-5", SD15, 4),
        ("down", SDXL, 24),
        ("mid", SDXL, 10),
        ("up", SD15, 9),
        ("d7.0-4", SDXL, 5),
        ("d7.9,d7.9", SDXL, 1),
        ("d7-8.3", SDXL, 2),
        ("grid0", SD15, 5),
        ("grid1-2", SDXL, 70),
        ("grid3", SD15, 1),
        ("!mid", SD15, 15),
        ("all,!u11", SD15, 15),
        ("up,!u3-u5,u4", SD15, 7),
        ("up\uff0c!u3-u5\uff0cu4", SD15, 7),  # a Chinese keyboard's comma
    ],
)
def test_terms_select(text, blocks, count):
    assert len(select(text, blocks, "Node")) == count


def test_names_are_the_hosts_numbers():
    assert select("d4.1,m0.9,u2.0", SDXL, "Node") == {("input", 4, 1), ("middle", 0, 9), ("output", 2, 0)}


@pytest.mark.parametrize("text", ["d", "middle", "4", "d1-u3", "x1", "d1..2", "all d4", "grid", "d-1"])
def test_what_is_not_of_the_language_is_named(text):
    with pytest.raises(ValueError, match="Node: blocks has .* which is not a block name; write for example"):
        select(text, SD15, "Node")


def test_errors_list_what_the_model_has():
    with pytest.raises(ValueError, match="blocks has 'd3', but this model has self-attention in d1 d2 d4"):
        select("d3", SD15, "Node")
    with pytest.raises(ValueError, match=r"d4 d5 \(2 deep\), d7 d8 m0 u0 u1 u2 \(10 deep\), u3 u4 u5 \(2 deep\)"):
        select("d7.10", SDXL, "Node")
    with pytest.raises(ValueError, match="blocks is empty"):
        select(" , ", SD15, "Node")
    with pytest.raises(ValueError, match="leaves no block"):
        select("mid,!m0", SD15, "Node")


def test_describe_groups_by_depth():
    assert describe(SD15).endswith("u11 (1 deep)")
