"""The packed pass of stage 1: streams, texts, negatives, losses."""
