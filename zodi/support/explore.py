"""Explorers: a picture that follows its controls, for the course's widgets.

An `Explorer` never shows a traceback, never computes the same picture twice, and never works through a queue of old
slider positions: while a picture is being drawn, only the newest choice is remembered.
"""

import asyncio
import base64
import html
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ipywidgets as widgets
import numpy as np

from zodi.support.plots import compact, encode_png

# How many drawn pictures are kept; one takes some 50 kB.
CACHE_SIZE = 500
Drawn = np.ndarray | bytes | tuple[np.ndarray | bytes, str]


class Explorer(widgets.VBox):
    """Controls above a picture and a line of text.

    In a notebook its first picture is also an ordinary image, which is what readers without a kernel see.

    Args:
        draw: called with the controls' values by name; returns an image uint8 (H, W, 3) or a PNG, or one of these and
            a line of HTML. Runs in a thread of its own and is called once for every choice.
        controls: name of the argument -> a widget with a `value`; sliders with `continuous_update=False`.
        alt: what the picture shows, for readers who cannot see it.
    """

    def __init__(self, draw: Callable[..., Drawn], controls: Mapping[str, widgets.ValueWidget], alt: str):
        self.draw, self.controls, self.alt = draw, dict(controls), alt
        self.picture = widgets.Image(format="png", layout=widgets.Layout(max_width="100%", object_fit="contain"))
        self.text, self.status = widgets.HTML(), widgets.HTML()
        self._cache: dict[tuple, tuple[bytes, str]] = {}
        self._task: asyncio.Task | None = None
        self._thread = ThreadPoolExecutor(1)
        super().__init__([*self.controls.values(), self.status, self.picture, self.text])
        self._show(self.choice, self._drawn(self.choice))
        for control in self.controls.values():
            control.observe(self._changed, "value")

    @property
    def choice(self) -> tuple:
        """The controls' values."""
        return tuple(control.value for control in self.controls.values())

    def _changed(self, _: object) -> None:
        """A control moved. A known picture is shown at once; any other is drawn, unless one is being drawn already."""
        if self.choice in self._cache:
            self._show(self.choice, self._cache[self.choice])
        elif self._task is None or self._task.done():
            try:
                self._task = asyncio.get_running_loop().create_task(self._catch_up())
            except RuntimeError:  # no kernel, as in tests
                self._show(self.choice, self._drawn(self.choice))

    async def _catch_up(self) -> None:
        """Draw until what is shown is what is chosen; choices abandoned meanwhile are skipped."""
        loop = asyncio.get_running_loop()
        while True:
            choice = self.choice
            self.status.value = "<span role='status'>drawing …</span>"
            drawn = await loop.run_in_executor(self._thread, self._drawn, choice)
            if choice == self.choice:
                return self._show(choice, drawn)

    def _drawn(self, choice: tuple) -> tuple[bytes, str]:
        """Picture and text of a choice, from the cache or newly drawn; an error becomes the text."""
        if choice not in self._cache:
            try:
                result = self.draw(**dict(zip(self.controls, choice, strict=True)))
            except Exception as error:  # whatever `draw` does, a reader should see a sentence
                message = html.escape(f"{type(error).__name__}: {error}")
                return b"", f"<b>This choice cannot be drawn.</b> {message}"
            image, text = result if isinstance(result, tuple) else (result, "")
            while len(self._cache) >= CACHE_SIZE:
                del self._cache[next(iter(self._cache))]
            self._cache[choice] = (image if isinstance(image, bytes) else encode_png(image), text)
        return self._cache[choice]

    def _show(self, choice: tuple, drawn: tuple[bytes, str]) -> None:
        """Put picture and text in their places; after an error no old picture remains that could mislead."""
        self.status.value = ""
        self.picture.layout.display = "" if drawn[0] else "none"
        self.picture.value, self.text.value = drawn

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The live widget and, beside it, the current picture."""
        bundle = super()._repr_mimebundle_(**kwargs)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        if not self.picture.value:
            return data, metadata
        picture, kind = compact(self.picture.value)
        image = {f"image/{kind}": base64.b64encode(picture).decode(), "text/plain": self.alt}
        return data | image, metadata | {f"image/{kind}": {"alt": self.alt}}
