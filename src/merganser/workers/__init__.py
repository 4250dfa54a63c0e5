"""Several processes on one study, on one machine or on machines that share its folder."""
