-- One row is one of the $most best trials of the last study before $study, best first.
with
last_study as (
    select study
    from factor_trials
    where study <> $study and state = 'complete'
    group by study
    order by max(created_at) desc, study
    limit 1
),
final as (
    select factor_trials.parameters
    from factor_trials
    inner join last_study on factor_trials.study = last_study.study
    where factor_trials.state = 'complete'
    order by factor_trials.ndcg_at_10 desc, factor_trials.number
    limit $most
)
select * from final
