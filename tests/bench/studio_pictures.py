"""Take the pictures of the studio that docs/studio.md shows, of a bucket's real sweep.

``python tests/bench/studio_pictures.py BUCKET [SWEEP]``, with playwright and Debian's Chromium; they are written to docs/images.
"""

import sys
from pathlib import Path
from typing import Any

from support.browser import chromium, page_of
from support.studio import TOKEN, Client, served

IMAGES = Path(__file__).parents[2] / "docs/images"
SIZE = {"width": 1280, "height": 800}


def places(client: Client, sweep: str) -> dict[str, tuple[str, str]]:
    """The place and the colour scheme of each picture."""
    trainings = client.get(f"/trainings?sweep={sweep}&limit=2000")["items"]
    finished = [one for one in trainings if one["evidence"]] or trainings
    latent = client.get(f"/latents?sae={finished[0]['path']}&limit=40")["items"][-1]["latent"]
    return {
        "studio-trainings": (f"trainings?sweep={sweep}", "light"),
        "studio-training": (f"training/{finished[0]['id'].replace(':', '%3A')}", "dark"),
        "studio-sweep": (f"sweep/{sweep}", "light"),
        "studio-start": (f"new?sweep={sweep}", "light"),
        "studio-latent": (f"latent/{latent}?sae={finished[0]['path']}", "dark"),
        "studio-compare": (f"compare?ids={','.join(one['id'] for one in finished[:4])}", "light"),
    }


def picture(browser: Any, client: Client, name: str, place: str, scheme: str) -> None:
    """Open one place, wait until everything on it is there, and write its picture."""
    with page_of(browser, viewport=SIZE, color_scheme=scheme) as page:
        page.goto(f"{client.url}/#token={TOKEN}")
        page.locator("h1").wait_for()
        page.goto(f"{client.url}/#/{place}")
        page.locator("main h1").wait_for()
        page.locator("main .loading").first.wait_for(state="detached")
        if place.startswith("new"):
            page.locator("aside dl.figures").wait_for(timeout=120_000)
        page.wait_for_timeout(2500)  # for curves and sparklines, whose requests follow what is in sight
        page.screenshot(path=IMAGES / f"{name}.png")


def main(bucket: str, sweep: str = "demo") -> None:
    """Take all pictures of a bucket."""
    with served(bucket) as client, chromium() as browser:
        for name, (place, scheme) in places(client, sweep).items():
            picture(browser, client, name, place, scheme)


if __name__ == "__main__":
    main(*sys.argv[1:])
