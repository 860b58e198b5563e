"""MMEB: 36 data sets in which a query must find its target among given candidates."""
