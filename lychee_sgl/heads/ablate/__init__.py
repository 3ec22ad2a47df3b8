"""Many plans, made and judged by one harness: measured gains, trainings, rivals, answers, report."""
