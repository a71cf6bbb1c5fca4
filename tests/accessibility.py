"""What axe-core finds on a page: https://github.com/dequelabs/axe-core."""

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page


def findings(page: Page, within: str = "body") -> list[str]:
    """Violations of axe-core's rules and best practices: impact, rule, number of places, the first place."""
    result = Axe().run(page, context=within).response
    return [
        f"{found['impact']} {found['id']} ×{len(found['nodes'])}: {found['nodes'][0]['html'][:200]}"
        for found in result["violations"]
    ]
