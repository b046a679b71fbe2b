"""An IPython extension for the kernels that build the lessons' pages.

A picture comes in two formats, from which the page chooses. Its text is taken from its titles and
axes, so that a reader who cannot see it knows what it shows. A drawing without axes has words of
its own: the figure's label (`figure.set_label`).
"""

from typing import Any

_AXES = 6  # are described; of many small ones the first


def load_ipython_extension(shell: Any) -> None:
    shell.config.InlineBackend.figure_formats = {"svg", "png"}
    # not the formatter of text/plain: the inline backend clears its entry for figures
    bundles = shell.display_formatter.mimebundle_formatter
    bundles.for_type_by_name("matplotlib.figure", "Figure", _text)


def _text(figure: Any, include: Any = None, exclude: Any = None) -> dict[str, str]:
    return {"text/plain": describe(figure)}


def describe(figure: Any) -> str:
    """The picture's words, without the dollars of its formulas; "" if it has none."""
    return _described(figure).replace("$", "")


def _described(figure: Any) -> str:
    if figure.get_label():
        own = (figure.get_suptitle(), figure.get_label())
        return ". ".join(text for text in own if text)
    said = [figure.get_suptitle(), _labels(figure.get_supxlabel(), figure.get_supylabel())]
    for axes in figure.axes[:_AXES]:
        legend = axes.get_legend()
        shown = [t.get_text() for t in legend.get_texts()] if legend else []
        parts = [axes.get_title(), _labels(axes.get_xlabel(), axes.get_ylabel())]
        if any(parts) or shown:
            parts += ["colours by value" if axes.images else "", ", ".join(shown)]
        said.append("; ".join(" ".join(part.split()) for part in parts if part.strip()))
    if len(figure.axes) > _AXES and any(said):
        said.append(f"and {len(figure.axes) - _AXES} more")
    return ". ".join(text for text in said if text)


def _labels(across: str, up: str) -> str:
    named = (("across", across), ("up", up))
    return ", ".join(f"{where}: {' '.join(text.split())}" for where, text in named if text.strip())
