"""What is new, parted into increments: planned, scored, judged, retried; how they are kept is the output's business."""
