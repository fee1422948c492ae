-- Amounts are whole cents. A time range is half-open: it holds its start, not its end.

CREATE TABLE studio.studios (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 200),
    hourly_rate_cents bigint NOT NULL CHECK (hourly_rate_cents BETWEEN 0 AND 100000000)
);

INSERT INTO studio.studios (name, hourly_rate_cents)
VALUES ('Studio A', 4500), ('Studio B', 6000), ('Studio C', 9900);

CREATE TABLE studio.reservations (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    studio_id bigint NOT NULL,
    customer text NOT NULL CHECK (length(customer) BETWEEN 1 AND 200),
    starts_at timestamptz NOT NULL,
    ends_at timestamptz NOT NULL,
    status text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'cancelled')),
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT reservations_studio FOREIGN KEY (studio_id) REFERENCES studio.studios,
    CONSTRAINT reservations_end_after_start CHECK (starts_at < ends_at),
    -- A range of one number stands for equality, which GiST has for ranges without an extension. (Of numeric: that of the
    -- largest bigint is no int8range.)
    CONSTRAINT reservations_do_not_overlap EXCLUDE USING gist (
        numrange(studio_id, studio_id, '[]') WITH &&,
        tstzrange(starts_at, ends_at, '[)') WITH &&
    ) WHERE (status = 'active')
);

CREATE INDEX reservations_by_studio ON studio.reservations (studio_id, id);
CREATE INDEX reservations_by_time ON studio.reservations USING gist (tstzrange(starts_at, ends_at, '[)'));

CREATE TABLE studio.quotes (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    studio_id bigint NOT NULL,
    customer text NOT NULL CHECK (length(customer) BETWEEN 1 AND 200),
    starts_at timestamptz NOT NULL,
    ends_at timestamptz NOT NULL,
    total_cents bigint NOT NULL CHECK (total_cents >= 0),
    -- Expired is an open one whose time is over.
    status text NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'accepted')),
    valid_until timestamptz NOT NULL DEFAULT now() + interval '14 days',
    reservation_id bigint UNIQUE REFERENCES studio.reservations,
    CONSTRAINT quotes_studio FOREIGN KEY (studio_id) REFERENCES studio.studios,
    CONSTRAINT quotes_end_after_start CHECK (starts_at < ends_at),
    CONSTRAINT quotes_accepted_with_reservation CHECK ((status = 'accepted') = (reservation_id IS NOT NULL))
);

-- One row, locked by whoever makes an invoice until it commits or rolls back: so the numbers have no gaps.
CREATE TABLE studio.invoice_numbers (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    last bigint NOT NULL CHECK (last >= 0)
);

INSERT INTO studio.invoice_numbers (last) VALUES (0);

CREATE TABLE studio.invoices (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    number bigint NOT NULL UNIQUE CHECK (number > 0),
    reservation_id bigint NOT NULL CONSTRAINT invoices_once_per_reservation UNIQUE REFERENCES studio.reservations,
    customer text NOT NULL CHECK (length(customer) BETWEEN 1 AND 200),
    total_cents bigint NOT NULL CHECK (total_cents >= 0),
    status text NOT NULL DEFAULT 'issued' CHECK (status IN ('issued', 'paid')),
    issued_at timestamptz NOT NULL DEFAULT now(),
    paid_at timestamptz,
    CONSTRAINT invoices_paid_at_when_paid CHECK ((status = 'paid') = (paid_at IS NOT NULL))
);

CREATE TABLE studio.invoice_lines (
    invoice_id bigint NOT NULL REFERENCES studio.invoices,
    position integer NOT NULL CHECK (position > 0),
    description text NOT NULL,
    quantity_minutes bigint NOT NULL CHECK (quantity_minutes >= 0),
    amount_cents bigint NOT NULL CHECK (amount_cents >= 0),
    PRIMARY KEY (invoice_id, position)
);
