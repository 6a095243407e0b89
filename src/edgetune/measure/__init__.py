"""Loss, answers, Rouge-L, memory and versions."""
