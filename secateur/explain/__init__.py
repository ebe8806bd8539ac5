"""Why a pruned file is as fast as it is: the runtime's own times by node, beside what the arithmetic promised."""
