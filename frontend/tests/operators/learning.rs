//! Classic learning: trees, encoders.

use crate::model::{A, close, f32s, import, run};
use ir::Tensor;

const ML: &str = "ai.onnx.ml";

/// One tree: x0 <= 1 (missing values too) goes to leaf 1, others to x1 > 0 ? leaf 3 : leaf 4.
fn tree(extra: Vec<(&'static str, A<'static>)>) -> Vec<(&'static str, A<'static>)> {
    let mut attrs = vec![
        ("nodes_treeids", A::Is(&[0; 5])),
        ("nodes_nodeids", A::Is(&[0, 1, 2, 3, 4])),
        ("nodes_featureids", A::Is(&[0, 0, 1, 0, 0])),
        ("nodes_values", A::Fs(&[1.0, 0.0, 0.0, 0.0, 0.0])),
        ("nodes_modes", A::Ss(&["BRANCH_LEQ", "LEAF", "BRANCH_GT", "LEAF", "LEAF"])),
        ("nodes_truenodeids", A::Is(&[1, 0, 3, 0, 0])),
        ("nodes_falsenodeids", A::Is(&[2, 0, 4, 0, 0])),
        ("nodes_missing_value_tracks_true", A::Is(&[1, 0, 0, 0, 0])),
    ];
    attrs.extend(extra);
    attrs
}

#[test]
fn trees_of_mixed_comparisons_and_missing_values() {
    let attrs = tree(vec![
        ("n_targets", A::I(2)),
        ("target_treeids", A::Is(&[0; 3])),
        ("target_nodeids", A::Is(&[1, 3, 4])),
        ("target_ids", A::Is(&[0, 1, 0])),
        ("target_weights", A::Fs(&[10.0, 20.0, 30.0])),
        ("base_values", A::Fs(&[0.5, 0.25])),
    ]);
    let nan = f32::NAN;
    let x = f32s(&[4, 2], &[1.0, 9.0, 2.0, 1.0, 2.0, nan, nan, 1.0]);
    let out = run(ML, "TreeEnsembleRegressor", 3, &attrs, &[(&x).into()], 1);
    close(&out[0], &[4, 2], &[10.5, 0.25, 0.5, 20.25, 30.5, 0.25, 10.5, 0.25], 1e-6);
}

#[test]
fn a_classifier_names_the_class_of_the_largest_score() {
    let attrs = tree(vec![
        ("classlabels_int64s", A::Is(&[7, 8, 9])),
        ("class_treeids", A::Is(&[0; 4])),
        ("class_nodeids", A::Is(&[1, 3, 4, 4])),
        ("class_ids", A::Is(&[2, 1, 0, 2])),
        ("class_weights", A::Fs(&[1.0, 1.0, 2.0, 3.0])),
        ("post_transform", A::S("NONE")),
    ]);
    let x = f32s(&[3, 2], &[0.0, 0.0, 2.0, 1.0, 2.0, -1.0]);
    let out = run(ML, "TreeEnsembleClassifier", 3, &attrs, &[(&x).into()], 2);
    close(&out[0], &[3], &[9.0, 8.0, 9.0], 0.0);
    close(&out[1], &[3, 3], &[0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 2.0, 0.0, 3.0], 1e-6);
}

#[test]
fn broken_trees_are_reported() {
    let x = f32s(&[1, 2], &[0.0; 2]);
    let mut attrs = tree(vec![
        ("target_treeids", A::Is(&[0])),
        ("target_nodeids", A::Is(&[1])),
        ("target_ids", A::Is(&[0])),
        ("target_weights", A::Fs(&[1.0])),
    ]);
    let ok = import(ML, "TreeEnsembleRegressor", 3, &attrs, &[(&x).into()], 1);
    assert!(ok.is_ok());
    for (name, broken) in [
        ("nodes_truenodeids", A::Is(&[0, 0, 3, 0, 0][..])),
        ("nodes_truenodeids", A::Is(&[77, 0, 3, 0, 0])),
        ("nodes_featureids", A::Is(&[5, 0, 1, 0, 0])),
        ("nodes_values", A::Fs(&[1.0])),
    ] {
        let at = attrs.iter().position(|a| a.0 == name).unwrap();
        let before = std::mem::replace(&mut attrs[at].1, broken);
        assert!(import(ML, "TreeEnsembleRegressor", 3, &attrs, &[(&x).into()], 1).is_err(), "{name}");
        attrs[at].1 = before;
    }
}

#[test]
fn labels_that_are_not_in_the_table_get_the_default() {
    let x = Tensor::from_i64(vec![3], &[5, 6, 1]);
    let attrs = [
        ("keys_int64s", A::Is(&[1, 5])),
        ("values_floats", A::Fs(&[0.5, 0.25])),
        ("default_float", A::F(-1.0)),
    ];
    let out = run(ML, "LabelEncoder", 2, &attrs, &[(&x).into()], 1);
    close(&out[0], &[3], &[0.25, -1.0, 0.5], 0.0);
}
