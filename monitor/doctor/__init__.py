"""The operational checklist as code: facts are gathered at the edge, checks decide, a report says what to do."""
