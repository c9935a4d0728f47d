"""What can be worked out from told rows with integer programs, and what a site holds back for it; no linear rule."""
