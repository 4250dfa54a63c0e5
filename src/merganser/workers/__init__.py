"""Several processes on one study or merge, on one machine or on machines that share its folder."""
