"""Prints what is installed beside the interpreter that runs this as a CycloneDX 1.5 document: the image's SBOM."""

from __future__ import annotations

import json
import sys
from importlib.metadata import distributions


def main() -> None:
    """Write the document to stdout; the same packages make the same document."""
    components = sorted(
        (
            {
                "type": "library",
                "name": each.metadata["Name"],
                "version": each.version,
                "purl": f"pkg:pypi/{each.metadata['Name'].lower()}@{each.version}",
            }
            for each in distributions()
        ),
        key=lambda component: component["name"].lower(),
    )
    document = {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "components": components}
    json.dump(document, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
