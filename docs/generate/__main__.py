"""``python -m docs.generate`` writes every generated text. ``--check`` names the stale ones and exits with 1."""

import argparse
import sys

from docs.generate.pages import ROOT, generated_files


def main() -> int:
    """Write the files whose content changed, or with --check print them. Return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, and exit with 1 if a file is stale")
    check = parser.parse_args().check
    files = generated_files()
    stale = {file: text for file, text in files.items() if not file.exists() or file.read_text("utf-8") != text}
    for file, text in stale.items():
        print(f"{'stale' if check else 'written'}: {file.relative_to(ROOT)}")
        if not check:
            file.write_text(text, encoding="utf-8")
    if check and stale:
        print("Run: python -m docs.generate", file=sys.stderr)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
