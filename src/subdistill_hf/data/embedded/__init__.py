"""The datasets that come with the package: glyphs-100 and scikit-learn's digits."""
