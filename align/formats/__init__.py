"""The formats on disk, one artefact per module, each read and checked here."""
