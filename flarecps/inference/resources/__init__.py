"""What a scan may cost and does: placement, cost, planner, deadline, budget, usage."""
