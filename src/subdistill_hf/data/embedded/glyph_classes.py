"""The 100 classes of glyphs-100: 20 superclasses of five symbols, and the character of each."""

from __future__ import annotations

from typing import Final

_GLYPHS_BY_SUPERCLASS: Final[dict[str, dict[str, str]]] = {
    "arrows": {
        "arrow_left": "\u2190",
        "arrow_up": "\u2191",
        "arrow_right": "\u2192",
        "arrow_down": "\u2193",
        "arrow_left_right": "\u2194",
    },
    "double_arrows": {
        "double_arrow_left": "\u21d0",
        "double_arrow_up": "\u21d1",
        "double_arrow_right": "\u21d2",
        "double_arrow_down": "\u21d3",
        "double_arrow_left_right": "\u21d4",
    },
    "chess_pieces": {
        "white_chess_king": "\u2654",
        "white_chess_queen": "\u2655",
        "white_chess_rook": "\u2656",
        "white_chess_bishop": "\u2657",
        "white_chess_knight": "\u2658",
    },
    "card_suits": {
        "spade_suit": "\u2660",
        "heart_suit": "\u2665",
        "diamond_suit": "\u2666",
        "club_suit": "\u2663",
        "joker_star": "\u2605",
    },
    "dice": {
        "die_one": "\u2680",
        "die_two": "\u2681",
        "die_three": "\u2682",
        "die_four": "\u2683",
        "die_five": "\u2684",
    },
    "currency_signs": {
        "dollar_sign": "$",
        "euro_sign": "\u20ac",
        "pound_sign": "\u00a3",
        "yen_sign": "\u00a5",
        "won_sign": "\u20a9",
    },
    "operators": {
        "plus_sign": "+",
        "minus_sign": "\u2212",
        "times_sign": "\u00d7",
        "division_sign": "\u00f7",
        "plus_minus_sign": "\u00b1",
    },
    "relations": {
        "equal_sign": "=",
        "not_equal_sign": "\u2260",
        "almost_equal_sign": "\u2248",
        "less_or_equal_sign": "\u2264",
        "greater_or_equal_sign": "\u2265",
    },
    "greek_letters": {
        "greek_alpha": "\u03b1",
        "greek_beta": "\u03b2",
        "greek_gamma": "\u03b3",
        "greek_delta": "\u03b4",
        "greek_omega": "\u03c9",
    },
    "cyrillic_letters": {
        "cyrillic_zhe": "\u0416",
        "cyrillic_ef": "\u0424",
        "cyrillic_sha": "\u0428",
        "cyrillic_shcha": "\u0429",
        "cyrillic_tse": "\u0426",
    },
    "round_letters": {
        "letter_c": "C",
        "letter_d": "D",
        "letter_g": "G",
        "letter_o": "O",
        "letter_q": "Q",
    },
    "round_digits": {
        "digit_three": "3",
        "digit_five": "5",
        "digit_six": "6",
        "digit_eight": "8",
        "digit_nine": "9",
    },
    "accented_letters": {
        "e_acute": "\u00e9",
        "e_grave": "\u00e8",
        "e_circumflex": "\u00ea",
        "e_diaeresis": "\u00eb",
        "e_caron": "\u011b",
    },
    "set_signs": {
        "element_of": "\u2208",
        "not_element_of": "\u2209",
        "subset_of": "\u2282",
        "superset_of": "\u2283",
        "set_union": "\u222a",
    },
    "logic_signs": {
        "for_all": "\u2200",
        "there_exists": "\u2203",
        "logical_and": "\u2227",
        "logical_or": "\u2228",
        "logical_not": "\u00ac",
    },
    "filled_shapes": {
        "filled_square": "\u25a0",
        "filled_circle": "\u25cf",
        "filled_triangle": "\u25b2",
        "filled_diamond": "\u25c6",
        "filled_pentagon": "\u2b1f",
    },
    "zodiac_signs": {
        "zodiac_aries": "\u2648",
        "zodiac_taurus": "\u2649",
        "zodiac_gemini": "\u264a",
        "zodiac_cancer": "\u264b",
        "zodiac_leo": "\u264c",
    },
    "music_signs": {
        "quarter_note": "\u2669",
        "eighth_note": "\u266a",
        "beamed_eighth_notes": "\u266b",
        "beamed_sixteenth_notes": "\u266c",
        "music_flat": "\u266d",
    },
    "planet_signs": {
        "planet_mercury": "\u263f",
        "planet_venus": "\u2640",
        "planet_mars": "\u2642",
        "planet_jupiter": "\u2643",
        "planet_saturn": "\u2644",
    },
    "weather_signs": {
        "weather_sun": "\u2600",
        "weather_cloud": "\u2601",
        "weather_umbrella": "\u2602",
        "weather_snowman": "\u2603",
        "weather_comet": "\u2604",
    },
}

SUPERCLASSES: Final[dict[str, tuple[str, ...]]] = {
    name: tuple(glyphs) for name, glyphs in _GLYPHS_BY_SUPERCLASS.items()
}
"""The five class names of each superclass, in the order of the class ids."""

SUPERCLASS_NAMES: Final[tuple[str, ...]] = tuple(SUPERCLASSES)

CLASS_NAMES: Final[tuple[str, ...]] = tuple(name for names in SUPERCLASSES.values() for name in names)
"""The 100 class names; a class's id is its place here and its superclass's id is `class_id // 5`."""

GLYPHS: Final[tuple[str, ...]] = tuple(glyph for glyphs in _GLYPHS_BY_SUPERCLASS.values() for glyph in glyphs.values())
"""The character of each class."""
