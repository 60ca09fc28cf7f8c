"""What one request may cost: the numbers that code, tests and ``docs/security.md`` share.

Each is checked before any work that grows with the input, and the throttle is asked before any of
it. A rate is written as ``limits`` reads it. The table "What a request may cost" in
``docs/security.md`` says of each what lies beyond it and which test counts it.
"""

from __future__ import annotations

_KIB = 1024
_MIB = 1024 * _KIB

# Fields. They are characters before any normalising, which takes time that grows with the square of
# a text of combining marks.
EMAIL_CHARACTERS = 254
USERNAME_CHARACTERS = 150
PASSWORD_CHARACTERS = 128
# A password that has so many characters normalised (NFC) may come in up to four parts for each
# (``ᾂ`` is the most): bounded by 128 as it comes, one of 60 Korean syllables could be set on one
# system and not be typed on another. What is longer is not normalised.
PASSWORD_PARTS = 4 * PASSWORD_CHARACTERS
# zxcvbn sees so much of a password: its work grows with the square, and what follows adds strength.
STRENGTH_CHARACTERS = 64
# Fewer, where many of them can stand for letters ("$" for "s"): it looks up each piece in every way
# of reading them all, and holds the interpreter meanwhile. In so many look-ups of 20 ms together,
# and not of 400, everybody else of the process waits.
STRENGTH_LOOKUPS = 2**17

# Requests. A head must be whole within its seconds, a body within its own and one more for each
# so many bytes of it, however they drip.
HEAD_SECONDS = 10
BODY_SECONDS = 30
BODY_BYTES_A_SECOND = 64 * _KIB

# Work that is dear. So many wait for it in all processes together; who comes then is asked to come
# again. As many hashes are computed at once as there are cores.
HASHES_WAITING = 16
IMAGES_WAITING = 4
# A vault of many pages, read and decrypted in one answer, takes half a second of the processor.
LISTS_AT_ONCE = 2
LISTS_WAITING = 4
# The store of the avatars is another machine's, or a disk's: while it hangs, whoever asks for a
# picture waits for it, and may not take every thread.
FILES_AT_ONCE = 8
FILES_WAITING = 8

# Images, decoded in a process of their own.
IMAGE_BYTES = 5 * _MIB
# Photos of the usual 24 megapixels have a few more than 24 million: a limit of exactly that would
# refuse them.
IMAGE_PIXELS = 25_000_000
# Pillow keeps a pointer for each row: an image of one pixel by 25 million would take ten times the
# memory and time of a square one.
IMAGE_SIDE = 16_384
IMAGE_CPU_SECONDS = 5
# By the clock, on a machine that is busy with other things.
IMAGE_SECONDS = 30
IMAGE_ADDRESS_SPACE = 1024 * _MIB
# The worst WebP of 25 million pixels takes 420 MiB.
IMAGE_MEMORY = 480 * _MIB
IMAGE_SCANS = 100
IMAGE_CHUNKS = 1_000

# A vault. Who has more keeps reading, editing and deleting.
VAULT_ENTRIES = 5_000
VAULT_BYTES = 4 * _MIB

# Memory of two web processes and their children, in bytes.
MEMORY_UNDER_UPLOADS = 1_228 * _MIB
MEMORY_AFTER_UPLOADS = 400 * _MIB

# Mails of one kind to one recipient: the first at once, the second so many seconds after it, each
# other one so many after the one before it, and at most so many in any 24 hours.
MAIL_SECOND_SECONDS = 600
MAIL_OTHERS_SECONDS = 3_600
MAILS_A_DAY = 20
# They are counted apart for accounts that have had the mailbox for so many days, for those that
# have had it for so many, and for younger ones: of many accounts that had it for an hour each, the
# news would keep those of its owner waiting.
MAIL_MIDDLE_LANE_DAYS = 1
MAIL_LONG_LANE_DAYS = 30

# Another e-mail address waits so many hours for its mailbox and the password.
PENDING_ADDRESS_HOURS = 72
# So often an account changes its address within a grace period. Each address that it leaves is told
# of its deletion: without a bound somebody could have it mail any number of them.
ADDRESS_CHANGES_A_GRACE_PERIOD = 10

# Rates: by account, by client address, and by both together.
PASSWORDS_OF_PAIR = "10/15minutes"
PASSWORDS_OF_ACCOUNT = "100/15minutes"
PASSWORDS_OF_ADDRESS = "100/15minutes"
# An address from which an account was signed in to is known to it for so long.
KNOWN_DAYS = 30
SIGN_UPS_OF_ADDRESS = "30/hour"
EMAIL_CHANGES = "5/hour"
PASSWORD_CHANGES = "10/hour"
PROFILE_WRITES = "60/hour"
VAULT_WRITES = "120/minute"
UPLOADS_OF_ACCOUNT = "20/hour"
UPLOADS_OF_ADDRESS = "60/hour"
EXPORTS_OF_ACCOUNT = "10/hour"
EXPORTS_OF_ADDRESS = "30/hour"
TOKENS_OF_ADDRESS = "60/15minutes"
# Whoever has a number may look as often as a person reloads a page; each look reads the seals that
# cover the receipt.
RECEIPTS_OF_ADDRESS = "60/15minutes"
RESETS_OF_ACCOUNT = "3/hour"
RESETS_OF_ADDRESS = "30/hour"
STAFF_DEACTIVATIONS = "20/hour"
STAFF_CONFIRMATIONS = "10/15minutes"
REFUSED_ATTEMPTS_AUDITED = "10/hour"
