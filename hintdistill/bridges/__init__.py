"""Bridges: a run's targets in the forms that other trainers take. Importing one imports no other trainer until it is used."""
