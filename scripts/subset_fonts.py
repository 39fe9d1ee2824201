"""Cut the DejaVu fonts that matplotlib ships down to the symbols of glyphs-100, and write them into the package.

    pip install fonttools matplotlib
    python scripts/subset_fonts.py

The package draws glyphs-100 with these files, so that its images depend neither on an installed matplotlib nor on its
version. Outlines, hints and metrics stay as they are: each symbol is drawn with the same pixels
(`tests/data/embedded/test_glyphs.py` compares them). A face that lacks a symbol of the classes lacks it here too.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib
from fontTools import subset

from subdistill_hf.data.embedded.glyph_classes import GLYPHS
from subdistill_hf.data.embedded.glyphs import FONT_FACES, FONTS, SYMBOLS_FILE

SOURCE = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def options() -> subset.Options:
    """Keep hints, and the names that state author and licence; drop what drawing single symbols does not need."""
    chosen = subset.Options()
    chosen.hinting = True
    chosen.layout_features = []
    chosen.bidi_closure = False
    chosen.name_IDs = [0, 1, 2, 3, 4, 5, 6, 13, 14]
    chosen.notdef_outline = True
    chosen.glyph_names = False
    chosen.recalc_bounds = False
    chosen.recalc_timestamp = False
    chosen.drop_tables += ["FFTM", "GDEF", "GPOS", "GSUB", "kern"]
    return chosen


def main() -> None:
    """Write every face, the symbols that it has, and the licence."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    FONTS.mkdir(exist_ok=True)
    total, symbols = 0, {}
    for face in FONT_FACES:
        font = subset.load_font(str(SOURCE / f"{face}.ttf"), options())
        chosen = subset.Subsetter(options())
        chosen.populate(unicodes=[ord(glyph) for glyph in GLYPHS])
        chosen.subset(font)
        symbols[face] = "".join(glyph for glyph in GLYPHS if ord(glyph) in font.getBestCmap())
        path = FONTS / f"{face}.ttf"
        subset.save_font(font, str(path), options())
        total += path.stat().st_size
    text = json.dumps(symbols, indent=1, ensure_ascii=False) + "\n"
    (FONTS / SYMBOLS_FILE).write_text(text, encoding="utf-8")
    (FONTS / "LICENSE_DEJAVU").write_bytes((SOURCE / "LICENSE_DEJAVU").read_bytes())
    print(f"{len(FONT_FACES)} faces, {total:,} bytes")


if __name__ == "__main__":
    main()
