"""From a real image to something the engine can edit.

A photo is inverted (inversion), the attention of its prompt is stored along the way
(attention_store), the new prompt's words are mapped to the old one's (prompts), and its foreground
is found (masks, segmentation). Schedules say how long injection and blending hold.
"""
