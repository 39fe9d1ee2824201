"""The classes of glyphs-100."""

from subdistill_hf.data.embedded.glyph_classes import CLASS_NAMES, GLYPHS, SUPERCLASS_NAMES, SUPERCLASSES


def test_superclasses_partition_the_classes_in_fives():
    assert len(CLASS_NAMES) == len(set(CLASS_NAMES)) == len(set(GLYPHS)) == 100
    assert len(SUPERCLASS_NAMES) == len(set(SUPERCLASS_NAMES)) == 20
    assert tuple(SUPERCLASSES) == SUPERCLASS_NAMES
    for superclass_id, names in enumerate(SUPERCLASSES.values()):
        assert names == CLASS_NAMES[5 * superclass_id : 5 * superclass_id + 5]
    for name in CLASS_NAMES + SUPERCLASS_NAMES:
        assert name.isidentifier()
        assert name == name.lower()
