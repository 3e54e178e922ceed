"""`pgmkit explore`."""

from pathlib import Path

import click

from pgmkit.cli.completion import complete_models
from pgmkit.cli.output import examples
from pgmkit.cli.settings import OutPath, device_option, working
from pgmkit.errors import ParameterError

_NEEDED = "pgmkit explore needs Gradio: pip install 'pgmkit[explore]'"


@click.command(
    epilog=examples(
        "pgmkit explore shattered",
        "pgmkit explore mnist-pgmgan --port 0 --no-browser",
        "pgmkit explore shattered --space my-space",
    )
)
@click.argument("result", shell_complete=complete_models("generator"))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=int, default=7860, show_default=True, help="Port; 0 takes a free one.")
@click.option("--space", type=OutPath(), help="Write a Hugging Face Space to this folder instead.")
@click.option("--no-browser", is_flag=True, help="Open no browser.")
@device_option
def explore(
    result: str, host: str, port: int, space: Path | None, no_browser: bool, device: str | None
) -> None:
    """Look at RESULT in a browser: what pgmkit shatter, train or partition fit wrote.

    RESULT is a folder, a conditional generator of the registry, or hf-hub:org/name. The page is
    for this machine alone, unless --host says otherwise.
    """
    if space is not None:
        from pgmkit.exploring.opening import place_of
        from pgmkit.exploring.space import write_space

        click.echo(write_space(place_of(result), space))
        return
    try:
        from pgmkit.exploring.page import page_of, serve
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("gradio", "uvicorn", "fastapi"):
            raise
        raise ParameterError(_NEEDED) from error
    with working(quiet=False):
        page = page_of(result, device=device or "auto")
    serve(page, host=host, port=port, browser=not no_browser)
