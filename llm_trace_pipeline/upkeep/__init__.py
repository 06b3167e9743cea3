"""What happens to hours that are loaded: compared, dropped, erased, checked."""
