-- One row is an erasure of the person behind $user_pseudonym, oldest first.
select erasure_id, removed, erased_at from erasures where user_pseudonym = $user_pseudonym order by erased_at
