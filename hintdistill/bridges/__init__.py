"""Offer a run's targets in the forms that other trainers accept. Importing a bridge imports no other trainer until it
is used."""
