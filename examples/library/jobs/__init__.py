"""The jobs of the example library: one module each, all made by the shared template engine."""

from . import (
    code_error,
    code_language,
    column_type,
    commit_type,
    fin_category,
    fin_headline,
    home_command,
    hr_ticket,
    legal_clause,
    legal_request,
    log_severity,
    med_department,
    med_dosage_form,
    review_aspect,
    support_intent,
    travel_request,
)
from .decoys import DECOY_JOBS
from .engine import ByLabel, Example, Half, Job, Split, half, make_job

__all__ = ["DECOY_JOBS", "JOBS", "ByLabel", "Example", "Half", "Job", "Split", "half", "make_job"]

_MODULES = (
    med_department,
    med_dosage_form,
    legal_clause,
    legal_request,
    fin_category,
    fin_headline,
    support_intent,
    review_aspect,
    code_language,
    code_error,
    commit_type,
    column_type,
    log_severity,
    home_command,
    travel_request,
    hr_ticket,
)

JOBS: dict[str, Job] = {module.JOB.name: module.JOB for module in _MODULES}
