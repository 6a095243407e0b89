"""What a person reads after a run: the table, `summary.json` and `report.html`, from `events.jsonl` alone."""
