-- One row is a text that nobody but the user $user_id has written, by its hash.
with
texts as (select user_id, sha256(trim(text)) as content_hash from raw_events where text is not null),
theirs as (select distinct content_hash from texts where user_id = $user_id),
of_others as (select distinct content_hash from texts where user_id <> $user_id),
final as (
    select content_hash from theirs
    except
    select content_hash from of_others
)
select * from final
