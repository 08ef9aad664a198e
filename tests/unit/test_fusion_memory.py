"""What a layered edit keeps: found by key and by the very objects, a few at a time, models not kept alive."""

import gc
import weakref

import pytest

from latent_layers.fusion.memory import Memory


class Model:
    """Something that can be referred to weakly, as a model can."""


@pytest.fixture
def memory():
    return Memory(kept=2)


def test_a_result_is_found_with_its_key_and_objects(memory):
    model, conditioning = Model(), [["text"]]
    assert not memory.has("a", (model, conditioning))
    memory.put("a", (model, conditioning), 42)
    assert memory.has("a", (model, conditioning)) and memory.get("a") == 42
    assert not memory.has("b", (model, conditioning))


def test_an_equal_object_is_not_the_same(memory):
    model = Model()
    memory.put("a", (model, [1]), 42)
    assert not memory.has("a", (Model(), [1]))
    assert not memory.has("a", (model, [1]))  # another list, though an equal one


def test_a_model_is_not_kept_alive(memory):
    model = Model()
    alive = weakref.ref(model)
    memory.put("a", (model,), 42)
    del model
    gc.collect()
    assert alive() is None
    assert not memory.has("a", (Model(),))


def test_what_was_made_with_an_object_goes_with_it(memory):
    class Result: ...

    first, second, result = Model(), Model(), Result()
    gone = weakref.ref(result)
    memory.put("a", (first, [1]), Result())
    memory.put("a", (second, [1]), result)
    del result, first
    gc.collect()
    assert memory.has("a", (second, [1])) is False and gone() is not None  # another object's end is nothing to it
    del second
    gc.collect()
    assert gone() is None


def test_the_result_asked_for_longest_ago_goes_first(memory):
    model = Model()
    for key in ("a", "b"):
        memory.put(key, (model,), key)
    memory.get("a")
    memory.put("c", (model,), "c")
    assert memory.has("a", (model,)) and memory.has("c", (model,)) and not memory.has("b", (model,))
    memory.clear()
    assert not memory.has("a", (model,))
