"""Readers of spectrum files: each returns a `~specutils.Spectrum` with its mask, in vacuum and at rest."""

from cyclestarnet.io.apogee import APOGEE_BAD_BITS, read_apstar, read_apvisit, read_aspcapstar

__all__ = ["APOGEE_BAD_BITS", "read_apstar", "read_apvisit", "read_aspcapstar"]
