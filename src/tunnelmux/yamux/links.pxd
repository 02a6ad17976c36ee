# Doubly linked lists whose links live inside their members: joining, leaving and asking cost no
# memory and no search. A list is a link without an owner. Links hold no references: whatever is
# linked must be kept alive elsewhere, and unlinked before it is let go.

cdef struct Link:
    Link *previous
    Link *following
    void *owner


cdef inline void init_link(Link *link, void *owner) noexcept nogil:
    link.previous = link
    link.following = link
    link.owner = owner


cdef inline bint is_linked(const Link *link) noexcept nogil:
    return link.following != link


cdef inline void append_link(Link *list, Link *link) noexcept nogil:
    link.previous = list.previous
    link.following = list
    list.previous.following = link
    list.previous = link


cdef inline void unlink(Link *link) noexcept nogil:
    link.previous.following = link.following
    link.following.previous = link.previous
    link.previous = link
    link.following = link
