"""Pictures, sounds and videos embedded in HTML, as notebooks show them."""

import base64


def data_url(content: bytes, mime_type: str) -> str:
    """The content of a file as a data URL."""
    return f"data:{mime_type};base64,{base64.b64encode(content).decode()}"


def video_html(content: bytes, attributes: str = "controls") -> str:
    """A player of an mp4 video that is part of the page.

    JupyterLab removes the addresses of `<source>` from notebooks that it does not trust, such as those that
    papermill executed. The address of `<video>` itself stays; IPython's `Video` has none.
    """
    return f'<video {attributes} src="{data_url(content, "video/mp4")}"></video>'
