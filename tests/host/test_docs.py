"""Every node, input and output is explained: in its schema, both translations and both help pages."""

import json
import re
import shutil

import pack
import pytest

from latent_layers.nodes import NODES

SCHEMAS = {node.define_schema().node_id: node.define_schema() for node in NODES}
LANGUAGES = ("en", "zh")
UNTRANSLATED = {"CLIP", "VAE", "Sigmas"}  # names that Chinese users know as they are
HEADINGS = {"en": ("## Inputs", "## Outputs"), "zh": ("## 输入", "## 输出")}

each_node = pytest.mark.parametrize("node_id", SCHEMAS)
each_language = pytest.mark.parametrize("language", LANGUAGES)


def locale(language, name):
    return json.loads((pack.ROOT / "locales" / language / f"{name}.json").read_text(encoding="utf-8"))


def input_names(schema):
    return [entry.display_name or entry.id for entry in schema.inputs]


def output_names(schema):
    """As the host names them: an output without a name shows its type."""
    return [entry.display_name or entry.get_io_type() for entry in schema.outputs]


def texts(entry):
    """All texts in a locale file or a part of it."""
    if isinstance(entry, dict):
        return [text for value in entry.values() for text in texts(value)]
    return [entry]


def is_chinese(text):
    return re.search(r"[\u4e00-\u9fff]", text) is not None


def help_page(language, node_id):
    """Where the web page asks first: <id>/<language>.md; English is also its fallback, <id>.md."""
    folder = pack.ROOT / web_directory() / "docs"
    translated = folder / node_id / f"{language}.md"
    page = folder / f"{node_id}.md" if language == "en" and not translated.exists() else translated
    return page.read_text(encoding="utf-8")


def web_directory():
    return pack.load_pack().WEB_DIRECTORY


def explained(page, heading):
    """The first column of the table below the heading, as it is written."""
    section = page.split(f"\n{heading}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [row.split("|")[1].strip() for row in rows[2:]]


def written(name, translated):
    """A name in a help page; a translation of it in brackets, as the node shows only that."""
    return f"`{name}`" if name.lower() == translated.lower() else f"`{name}`（{translated}）"


@each_node
def test_schema_explains_itself(node_id):
    schema = SCHEMAS[node_id]
    assert schema.display_name and schema.description
    for entry in [*schema.inputs, *schema.outputs]:
        assert entry.tooltip, f"{entry.id or entry.get_io_type()} has no tooltip"


@each_language
def test_locale_has_exactly_the_nodes(language):
    assert sorted(locale(language, "nodeDefs")) == sorted(SCHEMAS)


@each_language
@each_node
def test_locale_has_exactly_the_schema(language, node_id):
    schema, entry = SCHEMAS[node_id], locale(language, "nodeDefs")[node_id]
    assert list(entry) == ["display_name", "description", "inputs", "outputs"]
    assert list(entry["inputs"]) == [one.id for one in schema.inputs]
    assert list(entry["outputs"]) == [str(index) for index in range(len(schema.outputs))]
    for slot in [*entry["inputs"].values(), *entry["outputs"].values()]:
        assert list(slot) == ["name", "tooltip"]


@each_node
def test_english_locale_says_what_the_schema_says(node_id):
    schema, entry = SCHEMAS[node_id], locale("en", "nodeDefs")[node_id]
    assert (entry["display_name"], entry["description"]) == (schema.display_name, schema.description)
    for kind, names, slots in (
        ("inputs", input_names(schema), schema.inputs),
        ("outputs", output_names(schema), schema.outputs),
    ):
        expected = [(name, slot.tooltip) for name, slot in zip(names, slots, strict=True)]
        assert [(slot["name"], slot["tooltip"]) for slot in entry[kind].values()] == expected


@each_node
def test_chinese_locale_is_chinese(node_id):
    untranslated = [text for text in texts(locale("zh", "nodeDefs")[node_id]) if not is_chinese(text)]
    assert set(untranslated) <= UNTRANSLATED


@each_language
@pytest.mark.parametrize("name", ["nodeDefs", "main"])
def test_locale_texts_are_plain(language, name):
    """The web page compiles these texts as message formats, in which {, }, @ and | are operators."""
    for text in texts(locale(language, name)):
        assert text == text.strip() != ""
        assert not set(text) & set("{}@|"), text


@each_language
def test_locale_has_exactly_the_categories(language):
    parts = {part for schema in SCHEMAS.values() for part in schema.category.split("/")}
    assert set(locale(language, "main")["nodeCategories"]) == parts


def test_chinese_categories_are_chinese():
    english, chinese = locale("en", "main"), locale("zh", "main")
    assert {group: list(entries) for group, entries in english.items()} == {
        group: list(entries) for group, entries in chinese.items()
    }
    assert all(is_chinese(text) for text in texts(chinese))
    # They hold for every pack's nodes: in English nobody else's are renamed.
    assert all(key == text for entries in english.values() for key, text in entries.items())


def test_host_serves_the_locales(tmp_path, monkeypatch):
    import folder_paths
    from app.custom_node_manager import CustomNodeManager

    shutil.copytree(pack.ROOT / "locales", tmp_path / "pack" / "locales")
    monkeypatch.setattr(folder_paths, "get_folder_paths", lambda name: [str(tmp_path)])
    assert CustomNodeManager().build_translations() == {
        language: {**locale(language, "main"), "nodeDefs": locale(language, "nodeDefs")} for language in LANGUAGES
    }


def test_web_directory_has_the_help_pages_and_no_stale_ones():
    docs = pack.ROOT / web_directory() / "docs"
    assert docs.is_dir()
    assert {page.stem for page in docs.iterdir()} == set(SCHEMAS)


@each_language
@each_node
def test_help_page_explains_exactly_the_schema(language, node_id):
    schema, entry, page = SCHEMAS[node_id], locale(language, "nodeDefs")[node_id], help_page(language, node_id)
    assert page.startswith(f"# {entry['display_name']}\n")
    for heading, kind, names in zip(
        HEADINGS[language], ("inputs", "outputs"), (input_names(schema), output_names(schema)), strict=True
    ):
        shown = [slot["name"] for slot in entry[kind].values()]
        expected = [written(name, text) for name, text in zip(names, shown, strict=True)]
        assert explained(page, heading) == expected


@each_node
def test_chinese_help_page_is_chinese(node_id):
    for paragraph in help_page("zh", node_id).split("\n\n"):
        assert is_chinese(paragraph), paragraph


@each_language
@each_node
def test_pictures_of_a_help_page_are_there(language, node_id):
    """The page asks for them below /extensions/<pack>/docs/, whichever language's file names them."""
    for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", help_page(language, node_id)):
        assert (pack.ROOT / web_directory() / "docs" / name).is_file()


@pytest.mark.parametrize("page", ["README.md", "docs/figures.md"])
def test_pictures_of_the_documentation_are_there(page):
    path = pack.ROOT / page
    names = re.findall(r"!\[[^]]*\]\(([^)]+)\)", path.read_text(encoding="utf-8"))
    assert names and all((path.parent / name).is_file() for name in names)
