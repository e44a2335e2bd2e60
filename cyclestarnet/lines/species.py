"""Names of atoms, ions and molecules, in the spellings of line lists and in ours: ``"Fe I"``, ``"CN"``."""

from __future__ import annotations

import re

__all__ = ["atoms_of", "species_of_code", "species_of_text"]

ELEMENTS = (
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr Nb "
    "Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au "
    "Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es"
).split()
# Formulae name metals first, then these in turn (TiO, SiH, CN, HCl) - but for three that everybody writes otherwise.
NONMETALS = "B Si C P N H S Cl O F".split()
USUAL_FORMULAE = {"HO": "OH", "HS": "SH", "CNH": "HCN"}


def _roman(number):
    tens, ones = divmod(number, 10)
    return "X" * tens + ["", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX"][ones]


def species_of_code(code: float | str) -> str:
    """Name the species of a MOOG code.

    Parameters
    ----------
    code : float or str
        Atomic numbers in pairs of digits, a point, the charge, and isotopes, which do not matter: 26.1, 608.01216.

    Returns
    -------
    str
        In our spelling.

    Raises
    ------
    ValueError
        If there are no such elements.

    Examples
    --------
    >>> from cyclestarnet.lines.species import species_of_code
    >>> species_of_code(26.1), species_of_code(608.01216)
    ('Fe II', 'CO')
    """
    numbers, decimals = f"{float(code):.5f}".split(".")
    numbers = numbers.zfill(len(numbers) + len(numbers) % 2)
    atoms = [int(numbers[i : i + 2]) for i in range(0, len(numbers), 2)]
    if not all(1 <= atom <= len(ELEMENTS) for atom in atoms):
        raise ValueError(f"{code} is no species code: atomic numbers in pairs of digits, a point and the charge")
    symbols = sorted((ELEMENTS[atom - 1] for atom in atoms), key=lambda s: NONMETALS.index(s) if s in NONMETALS else -1)
    name = "".join(s + (str(symbols.count(s)) if symbols.count(s) > 1 else "") for s in dict.fromkeys(symbols))
    return _spectrum(USUAL_FORMULAE.get(name, name), charge=int(decimals[0]), molecule=len(atoms) > 1)


def _spectrum(name, charge, molecule):
    """``"Fe I"``, but ``"CN"``: the neutral molecule needs no number."""
    return name if molecule and charge == 0 else f"{name} {_roman(charge + 1)}"


def atoms_of(name: str) -> list[str] | None:
    """List the elements of a formula.

    Parameters
    ----------
    name : str
        Such as ``"CO"``, without charge.

    Returns
    -------
    list of str, or None
        Their symbols, each once; None if it is no formula.

    Examples
    --------
    >>> from cyclestarnet.lines.species import atoms_of
    >>> atoms_of("C2"), atoms_of("TiO"), atoms_of("star")
    (['C'], ['Ti', 'O'], None)
    """
    parts = re.findall(r"([A-Z][a-z]?)(\d*)", name)
    symbols = [symbol for symbol, _ in parts]
    if not parts or "".join(s + n for s, n in parts) != name or not set(symbols) <= set(ELEMENTS):
        return None
    return list(dict.fromkeys(symbols))


def species_of_text(text: str) -> str:
    """Spell a species as we do.

    Parameters
    ----------
    text : str
        ``"Fe 1"``, ``"Fe I"``, ``"Fe"``, ``"CN 1"``, ``"(46)Ti 1"`` or a MOOG code.

    Returns
    -------
    str
        Such as ``"Fe I"`` or ``"CN"``.

    Raises
    ------
    ValueError
        If it is none of these.

    Examples
    --------
    >>> from cyclestarnet.lines.species import species_of_text
    >>> species_of_text("Fe 2"), species_of_text("CN 1"), species_of_text("(46)Ti 1")
    ('Fe II', 'CN', 'Ti I')
    """
    text = str(text).strip()
    if re.fullmatch(r"\d+\.\d*", text):
        return species_of_code(text)
    match = re.fullmatch(r"(?:\(\d+\))?([A-Z]\w*)(?:\s+(\d{1,2}|[IVX]+))?", text)
    atoms = atoms_of(match[1]) if match else None
    # Iodine is in no molecule of a star: it is "FeI", glued together.
    if atoms is None or (len(atoms) > 1 and "I" in atoms):
        raise ValueError(f"species must be written as 'Fe I', 'Fe 1', 'CN' or 26.0, but one is {text!r}")
    name, stage = match[1], match[2]
    molecule = name != atoms[0]
    if stage is None:
        return name
    if stage.isdigit():
        return _spectrum(name, int(stage) - 1, molecule)
    return name if molecule and stage == "I" else f"{name} {stage}"
