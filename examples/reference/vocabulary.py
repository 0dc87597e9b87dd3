"""What captions can ask of the reference model; the layout of a condition and of a motion vector.

A **condition** (41 numbers) is a probability for every value of every slot, slot after slot in the order of
`SLOTS`. A caption that says nothing of a slot leaves it uniform; the render stage then lets the stream's
content noise choose. A **look** is the condition without its action: 29 numbers.

A **motion vector** (75 numbers) is one pose before the camera, linear enough to be interpolated:

    0:60    20 joints (x, y - 0.9, z) times 2, metres; x right and z away from the camera, relative to the
            hip in x and z, turned by the camera's yaw
    60:64   floor phase: sin(pi x), sin(pi z), cos(pi x), cos(pi z) of the hip's place on the floor
    64:70   the prop's two ends (x, y - 0.9, z) times 2, in the same frame; a ball's ends are equal
    70:75   presence, 0 to 1, of each of `PROPS`
"""

from __future__ import annotations

SLOTS: dict[str, tuple[str, ...]] = {
    "action": (
        "bending and lifting",
        "dancing",
        "directing traffic",
        "dribbling a basketball",
        "jumping",
        "playing soccer",
        "punching",
        "running",
        "shooting a basketball",
        "sword fighting",
        "walking",
        "washing a window",
    ),
    "shirt": ("red", "blue", "green", "yellow", "white", "black", "purple", "orange"),
    "trousers": ("black", "blue", "grey", "brown", "white", "green"),
    "skin": ("light", "tan", "brown", "dark"),
    "hair": ("black", "brown", "blond", "grey"),
    "background": ("blue", "white", "green", "dark", "beige"),
    "build": ("man", "woman"),
}
ACTIONS = SLOTS["action"]
LOOK_SLOTS = tuple(s for s in SLOTS if s != "action")
SLOT_SIZES = {slot: len(values) for slot, values in SLOTS.items()}
CONDITION_SIZE = sum(SLOT_SIZES.values())
LOOK_SIZE = CONDITION_SIZE - len(ACTIONS)

PROPS = ("basketball", "football", "sword", "gloves", "sponge")
PROP_OF_ACTION = {
    "dribbling a basketball": "basketball",
    "shooting a basketball": "basketball",
    "playing soccer": "football",
    "sword fighting": "sword",
    "punching": "gloves",
    "washing a window": "sponge",
}

JOINTS = (
    "hip",
    "l_thigh",
    "l_knee",
    "l_ankle",
    "l_toe",
    "r_thigh",
    "r_knee",
    "r_ankle",
    "r_toe",
    "spine",
    "neck",
    "head",
    "l_shoulder",
    "l_elbow",
    "l_wrist",
    "r_shoulder",
    "r_elbow",
    "r_wrist",
    "l_hand",
    "r_hand",
)
PARENTS = (-1, 0, 1, 2, 3, 0, 5, 6, 7, 0, 9, 10, 9, 12, 13, 9, 15, 16, 14, 17)
MIRRORED = (0, 5, 6, 7, 8, 1, 2, 3, 4, 9, 10, 11, 15, 16, 17, 12, 13, 14, 19, 18)

FPS = 16
HIP_HEIGHT = 0.9
JOINT_SCALE = 2.0
MOTION_SIZE = 60 + 4 + 6 + len(PROPS)
JOINT_SLICE, FLOOR_SLICE, PROP_SLICE, PRESENCE_SLICE = slice(0, 60), slice(60, 64), slice(64, 70), slice(70, 75)


def slot_slices(slots: tuple[str, ...] = tuple(SLOTS)) -> dict[str, slice]:
    """Where each slot's probabilities lie in a vector of these slots, in order."""
    slices, start = {}, 0
    for slot in slots:
        slices[slot] = slice(start, start + SLOT_SIZES[slot])
        start += SLOT_SIZES[slot]
    return slices
