"""Pictures for dark pages: the colours of the light theme exchanged for those of the dark one."""

import re

# The light theme of `steerlens.views.theme` and its dark counterparts; white is the page.
_DARK = {
    "#ffffff": "#1e2129",
    "#24292f": "#d5dae1",
    "#444444": "#d5dae1",
    "#7d828a": "#9aa1ab",
    "#ececec": "#2c3138",
    "#7db4d8": "#1d5c86",
    "#eaa36f": "#8a4713",
}
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}\b|rgb\((\d+), ?(\d+), ?(\d+)\)")


def dark(svg: str) -> str:
    """The picture with dark colours."""

    def replace(colour: re.Match[str]) -> str:
        if colour[1] is None:
            name = colour[0].lower()
        else:
            name = "#" + "".join(f"{int(part):02x}" for part in colour.groups())
        return _DARK.get(name, colour[0])

    return _COLOUR.sub(replace, svg)
