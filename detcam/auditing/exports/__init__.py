"""Audits in the containers of other libraries."""
