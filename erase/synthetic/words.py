"""The words that images of the generator hold."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


LABELS = _words("""
    total tax date code name city item price room gate seat flight order phone score level width height weight speed
    temp year page unit cost sum net fee bill rate tip cash change table guest rooms nights invoice account balance
    amount discount subtotal deposit due paid member ticket zone row track class batch serial model version volume
""")
GOODS = _words("""
    apple bread milk coffee tea sugar rice pasta cheese butter salad soup pizza burger cake juice water wine beer
    lemon onion tomato potato carrot banana orange grape peach chicken fish egg honey salt pepper olive cookie
""")
CATEGORIES = _words("""
    north south east west spring summer autumn winter jan feb mar apr may jun jul aug sep oct nov dec mon tue wed thu
    fri sat sun alpha beta gamma delta omega cars buses bikes trains boats planes dogs cats birds horses
""")
SIGNS = _words("""
    hotel cafe bank park exit open closed stop sale bakery market museum station library school police pharmacy
    cinema theater garden harbor bridge tower castle beach lake river forest mountain taxi bus parking toilet
    entrance office studio gallery hospital airport church square street avenue
""")
NAMES = _words("""
    anna ben carla david emma frank grace henry iris jack kate leo mary nick olivia paul rose sam tina victor
    adam bella chris diana eric fiona george helen ivan julia
""")
CITIES = _words("""
    paris rome berlin madrid london vienna lisbon dublin oslo athens prague warsaw tokyo delhi cairo lima sydney
    boston dallas denver miami seattle chicago toronto
""")
FACTS = _words("""
    users visits sales orders trees homes schools hours meals trips teams games books songs films cards coins rings
    stores farms roads lakes parks tests plants phones
""")
