"""DICOMweb over HTTP: QIDO-RS, WADO-RS with rendered resources, WADO-URI and STOW-RS (PS3.18)."""
