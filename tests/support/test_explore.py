import asyncio
import base64
import time
from io import BytesIO

import ipywidgets as widgets
import nbformat
import numpy as np
import PIL.Image
import pytest
from execute_notebooks import WIDGET, make_static

from zodi.support.explore import Explorer


def grey(value: int) -> np.ndarray:
    return np.full((4, 6, 3), value, np.uint8)


def shown(explorer: Explorer) -> int:
    """Grey value of the picture."""
    with PIL.Image.open(BytesIO(explorer.picture.value)) as image:
        return image.getpixel((0, 0))[0]


@pytest.fixture
def slider():
    return widgets.IntSlider(10, 0, 255, continuous_update=False)


def test_picture_follows_the_control_and_is_drawn_once(slider):
    drawn = []

    def draw(value):
        drawn.append(value)
        return grey(value), f"<b>{value}</b>"

    explorer = Explorer(draw, {"value": slider}, "grey")
    assert shown(explorer) == 10
    slider.value = 20
    assert shown(explorer) == 20 and explorer.text.value == "<b>20</b>"
    slider.value = 10
    assert shown(explorer) == 10 and drawn == [10, 20]


def test_error_is_a_sentence_and_the_next_choice_works(slider):
    def draw(value):
        if value == 1:
            raise ValueError("no <such> scene")
        return grey(value)

    explorer = Explorer(draw, {"value": slider}, "grey")
    slider.value = 1
    assert "ValueError: no &lt;such&gt; scene" in explorer.text.value
    assert explorer.picture.value == b"" and explorer.picture.layout.display == "none"
    slider.value = 2
    assert shown(explorer) == 2 and explorer.text.value == "" and explorer.picture.layout.display == ""


def test_choices_that_were_left_while_drawing_are_skipped(slider):
    drawn = []

    def draw(value):
        drawn.append(value)
        time.sleep(0.2)
        return grey(value)

    async def move() -> Explorer:
        explorer = Explorer(draw, {"value": slider}, "grey")
        for value in (20, 30, 40, 50):
            slider.value = value
            await asyncio.sleep(0.02)
        assert "drawing" in explorer.status.value
        await explorer._task
        return explorer

    explorer = asyncio.run(move())
    assert drawn == [10, 20, 50]
    assert shown(explorer) == 50 and explorer.status.value == ""


def test_readers_without_a_kernel_see_the_first_picture(slider):
    explorer = Explorer(lambda value: grey(value), {"value": slider}, "a grey square")
    data, metadata = explorer._repr_mimebundle_()
    assert WIDGET in data and base64.b64decode(data["image/png"]) == explorer.picture.value
    assert data["text/plain"] == "a grey square" and metadata["image/png"]["alt"] == "a grey square"
    output = nbformat.v4.new_output("display_data", data, metadata=metadata)
    other = nbformat.v4.new_output("display_data", {WIDGET: {}})
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(outputs=[output, other])])
    make_static(notebook)
    assert WIDGET not in output["data"] and WIDGET in other["data"]
