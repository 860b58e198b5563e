"""MMEB: 36 data sets in which a query has to retrieve its target among given candidates."""
