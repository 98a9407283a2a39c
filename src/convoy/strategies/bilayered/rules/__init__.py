"""The publication's formulas and their mended forms, one file each: numbers in, numbers out."""
