"""Which tensors are pruned, and what a checkpoint on disk may consist of."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors_files import PRUNED, entry, raw_file, sharded, tensors, write
from typer.testing import CliRunner

from nmflow.checkpoint import EXCLUDED, make_plan, open_source
from nmflow.cli import app
from nmflow.errors import CheckpointError, InputTypeError, InputValueError, PatternError, SourceNotFoundError
from nmflow.pattern import Pattern


def reasons(path: Path, **options: object) -> dict[str, str]:
    return {tensor.entry.name: tensor.reason for tensor in make_plan(path, "2:4", **options).tensors}  # type: ignore[arg-type]


def named(tmp_path: Path, *names: str, shape: tuple[int, ...] = (8, 16)) -> Path:
    return write(tmp_path / "named.safetensors", {name: np.ones(shape, "f4") for name in names})


def test_defaults(model: Path) -> None:
    found = reasons(model)
    assert {name for name, reason in found.items() if not reason} == set(PRUNED)
    assert {name: reason for name, reason in found.items() if reason} == {
        "embeddings.word.weight": "embedding (*embed*)",
        "encoder.f32.bias": "1-D",
        "encoder.depthwise.weight": "depthwise convolution",
        "encoder.quantised.weight": "dtype I8",
        "encoder.flags.weight": "dtype BOOL",
        "encoder.layer_norm.weight": "1-D",
        "encoder.tiny.weight": "smaller than a block of 4 x 4",
        "encoder.nothing.weight": "empty",
        "encoder.steps": "dtype I64",
        "encoder.gamma": "not named as a weight of a linear or convolution layer",
        "lm_head.weight": "output head (lm_head.*)",
    }


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("model.embed_tokens.weight", "embedding"),
        ("bert.embeddings.word_embeddings.weight", "embedding"),
        ("vision.patch_embed.proj.weight", "embedding"),
        ("wte.weight", "embedding"),
        ("transformer.wpe.weight", "embedding"),
        ("emb.weight", "embedding"),
        ("token_emb.emb.weight", "embedding"),
        ("shared.weight", "embedding"),
        ("encoder.position.weight", "position"),
        ("blocks.0.attn.rel_pos.weight", "position"),
        ("decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "bias"),
        ("block.norm1.linear.weight", "norm"),
        ("norm_out.linear.weight", "norm"),
        ("layer_norm.weight", "norm"),
        ("block.LayerNorm.weight", "norm"),
        ("layer1.0.bn1.weight", "norm"),
        ("h.0.ln_1.weight", "norm"),
        ("model.layers.0.q_proj.weight_scale_inv", "quantisation scale"),
        ("model.lm_head.weight", "output head"),
        ("classifier.dense.weight", "output head"),
        ("vit.classifier.weight", "output head"),
        ("score.weight", "output head"),
        ("head.weight", "output head"),
        ("model.head.weight", "output head"),
        ("heads.head.weight", "output head"),
        ("head_dist.linear.weight", "output head"),
        ("heads_dist.0.weight", "output head"),
        ("bbox_head.weight", "output head"),
        ("qa_outputs.weight", "output head"),
        ("cls.predictions.decoder.weight", "output head"),
        ("fc.weight", "output head"),
        ("output.weight", "output head"),
        ("transformer.output_layer.weight", "output head"),
        ("output_layer.weight", "output head"),
        ("vocab_projector.weight", "output head"),
        ("decoder.lm_heads.0.weight", "output head"),
        ("decoder.output_projection.weight", "output head"),
        ("output_projection.weight", "output head"),
        ("pred_layer.proj.weight", "output head"),
        ("lm_loss.weight", "output head"),
        ("logits_dense.weight", "output head"),
        ("log_softmax.mlp.layer0.weight", "output head"),
        ("predictions.decoder.weight", "output head"),
        ("model.layers.0.block_sparse_moe.gate.weight", "router of experts"),
        ("gate.weight", "router of experts"),
        ("mlp.router.weight", "router of experts"),
        ("layers.0.altup.modality_router.weight", "router of experts"),
        ("model.layers.0.mlp.gate.wg.weight", "router of experts"),
        ("vision_encoder.blocks.1.mlp.gate_weight", "router of experts"),
        ("model.layers.0.mlp.gate.router_mlp.fc1.weight", "router of experts"),
        ("mask_decoder.mask_tokens.weight", "embedding"),
        ("query_feat.weight", "embedding"),
        ("transformer_module.queries_features.weight", "embedding"),
        ("text_encoder.shared.weight", "embedding"),
        ("model.shared.weight", "embedding"),
        ("led.shared.weight", "embedding"),
        ("query.weight", "embedding"),
        ("detr_decoder.reference_points.weight", "position"),
        ("transformer.w.weight", "embedding"),
        ("base_model.dense.original_module.weight", "kept aside by PEFT"),
        ("quantizer.quantizers.0.codebook.weight", "codebook"),
        ("model.layers.0.self_attn.q_proj.centroids.weight", "codebook"),
        ("model.layers.0.self_attn.q_proj.res_centroids.weight", "codebook"),
        ("model.audio.encoder.weight", "embedding"),
        ("decoder.pos_emb.weight", "position"),
        ("vision_tower.head_linear.weight", "output head"),
        ("base_model.model.layers.0.q_proj.lora_A.weight", "adapter"),
        ("base_model.model.layers.0.q_proj.oft_R.weight", "adapter"),
        ("base_model.model.layers.0.q_proj.lily_A.weight", "adapter"),
        ("base_model.model.layers.0.q_proj.peanut_B.weight", "adapter"),
        ("base_model.model.layers.0.q_proj.peanut_encoders.0.weight", "adapter"),
        ("base_model.model.layers.0.q_proj.shadow_down.default.weight", "adapter"),
        ("base_model.model.layers.0.q_proj.shadow_update_gate.default.0.weight", "adapter"),
        ("base_model.shadow_backbone.default.layers.0.q_proj.weight", "adapter"),
        ("unet.down_blocks.0.attentions.0.to_q.lora.down.weight", "adapter"),
        ("down_blocks.0.attn1.processor.to_q_lora.up.weight", "adapter"),
        ("double_blocks.0.processor.proj_lora1.down.weight", "adapter"),
        ("down_blocks.0.resnets.0.time_emb_proj.weight", "embedding"),
        ("model.diffusion_model.input_blocks.1.0.emb_layers.1.weight", "embedding"),
        ("model.diffusion_model.label_emb.0.0.weight", "embedding"),
        ("time_step_proj.linear_1.weight", "embedding"),
        ("time_projection.1.weight", "embedding"),
        ("timestep_proj.0.weight", "embedding"),
        ("guidance_in.in_layer.weight", "embedding"),
        ("time_in.out_layer.weight", "embedding"),
        ("adaln_single.linear.weight", "modulation"),
        ("joint_blocks.0.x_block.adaLN_modulation.1.weight", "modulation"),
        ("single_stream_modulation.linear.weight", "modulation"),
        ("single_blocks.0.modulation.lin.weight", "modulation"),
        ("double_blocks.0.img_mod.lin.weight", "modulation"),
        ("transformer_blocks.0.txt_mod.1.weight", "modulation"),
        ("time_mod_proj.weight", "modulation"),
        ("distilled_guidance_layer.layers.0.linear_1.weight", "modulation"),
        ("av_cross_attn_video_a2v_gate.linear.weight", "modulation"),
        ("class_labels_classifier.weight", "output head"),
        ("classifier_distill.linear.weight", "output head"),
        ("classif.weight", "output head"),
        ("last_linear.weight", "output head"),
        ("final_linear.weight", "output head"),
        ("all_final_layer.2-1.linear.weight", "output head"),
        ("perceiver.decoder.decoder.final_layer.weight", "output head"),
        ("class_predictor.weight", "output head"),
        ("roi_heads.box_predictor.cls_score.weight", "output head"),
        ("roi_heads.box_predictor.bbox_pred.weight", "output head"),
        ("roi_heads.mask_predictor.mask_fcn_logits.weight", "output head"),
        ("detr.bbox_predictor.layers.2.weight", "output head"),
        ("decoder.decoder_pred.weight", "output head"),
        ("net.to_logits.weight", "output head"),
        ("transformer.sequence_summary.summary.weight", "output head"),
        ("proj_out.weight", "output head"),
        ("proj_out_2.weight", "output head"),
        ("audio_proj_out.weight", "output head"),
        ("action_out_proj.weight", "output head"),
        ("out_layer.out_layer.weight", "output head"),
        ("audio_out_layer.out_layer.weight", "output head"),
        ("decoder.weight", "output head"),
        ("encoder.proj_out.weight", "output head"),
        ("conv_out.weight", "output head"),
        ("first_stage_model.decoder.conv_out.weight", "output head"),
        ("model.diffusion_model.out.2.weight", "output head"),
        ("model.22.cv3.0.2.weight", "output head"),
        ("model.23.one2one_cv2.2.2.weight", "output head"),
        ("module.fc.weight", "output head"),
        ("_orig_mod.output.weight", "output head"),
        ("model.module.conv_out.weight", "output head"),
        ("conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight", "embedding"),
        ("conditioner.embedders.1.model.token_embedding.weight", "embedding"),
        ("model.embed_tokens_extend.image_embed.img_processor.embeddings.patch_embedding.weight", "embedding"),
        ("model.embed_tokens_extend.image_embed.img_processor.head.mlp.fc1.weight", "output head"),
    ],
)
def test_names_left_alone(tmp_path: Path, name: str, meaning: str) -> None:
    reason = reasons(named(tmp_path, name))[name]
    assert reason.partition(" (")[0].partition(",")[0] == meaning
    assert any(reason == f"{said} ({glob})" for glob, said in EXCLUDED)
    assert reasons(named(tmp_path, name), include=[name])[name] == ""


@pytest.mark.parametrize(
    "name",
    [
        "weight",
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "bert.encoder.layer.0.attention.output.dense.weight",
        "pooler.dense.weight",
        "h.0.mlp.c_fc.weight",
        "layer4.0.conv1.weight",
        "layer4.0.fc.weight",
        "attention.in_proj_weight",
        "conv.weight_v",
        "conv.parametrizations.weight.original1",
        "transformer.blocks.0.ffn.experts.mlp.v1",
        "transformer.blocks.0.ffn.experts.mlp.w2",
        "mlp.experts.down_proj",
        "mlp.shared_experts.down_proj",
        "blocks.0.linear_tokens.weight",
        "query_features_proj.weight",
        "encoder.layer.0.attention.self.query.weight",
        "horizon_ff_layer.output_layer.weight",
        "layers.0.self_attn.output_projection.o_proj.weight",
        "vocab_transform.weight",
        "funnel.encoder.blocks.0.0.attention.v_head.weight",
        "roberta_prelayernorm.encoder.layer.0.output.dense.weight",
        "layers.0.blocks.0.modulation.proj.weight",
        "model.layers.0.temporal_block.rg_lru.input_gate_weight",
        "visual_transformer_blocks.0.self_attention.out_layer.weight",
        "encoder.word_timestamp.proj.weight",
        "focalnet.encoder.stages.0.layers.0.modulation.projection_in.weight",
        "down_blocks.0.attentions.0.proj_out.weight",
        "single_transformer_blocks.0.proj_out.weight",
        "model.diffusion_model.out.0.attn.to_q.weight",
        "encoder.down_blocks.1.time_conv.weight",
        "blocks.0.rnn_tokens.fc.weight",
        "model.22.cv3.0.1.conv.weight",
        "model.layers.0.fc.weight",
        "encoder._orig_mod.0.weight",
        "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight",
        "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight",
        "model.embed_tokens_extend.image_embed.img_processor.encoder.layers.0.self_attn.q_proj.weight",
        "model.embed_tokens_extend.audio_embed.encoder.encoders.0.self_attn.linear_q.weight",
    ],
)
def test_names_pruned(tmp_path: Path, name: str) -> None:
    assert reasons(named(tmp_path, name))[name] == ""


@pytest.mark.parametrize("shape", [(8, 8), (16, 8)])
def test_gates_are_routers_only_with_fewer_rows_than_columns(tmp_path: Path, shape: tuple[int, int]) -> None:
    """In RetNet and RWKV they are square."""
    name = "model.layers.0.attention.gate.weight"
    assert reasons(named(tmp_path, name, shape=shape))[name] == ""


def test_a_gain_beside_a_weight_tells_that_it_is_standardised(tmp_path: Path) -> None:
    """As in NFNet; a mean is subtracted from what is stored, so that no zero of it stays one."""
    tensors = {f"stages.0.0.{name}.weight": np.ones((8, 8, 3, 3), "f4") for name in ("conv1", "conv2")}
    gain = {"stages.0.0.conv1.gain": np.ones((8, 1, 1, 1), "f4")}
    path = write(tmp_path / "x.safetensors", {**tensors, **gain, "fc2.weight": np.ones((8, 8), "f4")})
    found = reasons(path)
    assert found["stages.0.0.conv1.weight"].startswith("convolution that standardises its weight")
    assert (found["stages.0.0.conv2.weight"], found["fc2.weight"]) == ("", "")
    assert reasons(path, include=["*.conv1.weight"])["stages.0.0.conv1.weight"] == ""


def test_a_router_may_be_kept_the_other_way_round(tmp_path: Path) -> None:
    """With a column for each expert, as Ernie's folders have it."""
    name = "model.layers.0.mlp.gate.weight"
    assert reasons(named(tmp_path, name, shape=(64, 8)))[name].startswith("router of experts")


def test_every_default_exclusion_excludes_something(tmp_path: Path) -> None:
    plain = {glob: re.sub(r"\[(.).*?\]", r"\1", glob).replace("*", "x") for glob, _ in EXCLUDED}
    names = {glob: name + ("" if name.endswith("weight") else ".weight") for glob, name in plain.items()}
    found = reasons(named(tmp_path, *names.values()))
    assert all(found[name] for name in names.values())


def test_layouts_and_assumptions(model: Path) -> None:
    layouts = {tensor.entry.name: tensor.layout for tensor in make_plan(model, "2:4").pruned}
    assert layouts["encoder.f32.weight"] is None
    assert layouts["encoder.experts.up_proj"] == "batch"
    assert {layouts[f"encoder.conv{axes}d.weight"] for axes in (1, 2, 3)} == {"conv"}
    texts = {tensor.layout: tensor.assumption for tensor in make_plan(model, "2:4").pruned}
    assert "groups=1" in texts["conv"]
    assert texts["batch"] == "a stack of matrices (out, in)"
    assert texts[None] == "a matrix (out, in)"


@pytest.mark.parametrize(
    ("name", "shape", "layout"),
    [
        ("model.layers.0.block_sparse_moe.input_linear.weight", (4, 16, 8), "batch"),  # Granite's experts
        ("model.layers.0.block_sparse_moe.output_linear.weight", (4, 16, 8), "batch"),
        ("decoder.layers.0.mlp.fc1.weight", (8, 16, 64), "batch"),  # Moshi's, a matrix for each codebook
        ("layers.0.mamba.x_proj_weight", (2, 16, 64), "batch"),  # Zamba's, one for each head
        ("convbert.encoder.layer.0.intermediate.dense.weight", (8, 16, 64), "batch"),
        ("encoder.conv1.weight", (16, 8, 3), "conv"),
        ("encoder.pos_conv.0.weight", (16, 8, 128), "conv"),
        ("upsampler.0.weight", (16, 8, 16), "conv"),
        ("resampler.0.weight", (16, 8, 32), "conv"),
        ("attention.query.weight", (16, 8, 1), "conv"),
        ("downsample.0.weight", (16, 8, 1, 1), "conv"),
        ("stem.0.weight", (16, 8, 2, 64, 64), "conv"),
    ],
)
def test_three_axes_are_a_convolution_or_a_stack(
    tmp_path: Path, name: str, shape: tuple[int, ...], layout: str
) -> None:
    (tensor,) = make_plan(named(tmp_path, name, shape=shape), "2:4").tensors
    assert (tensor.reason, tensor.layout) == ("", layout)


def test_include_brings_back_what_a_name_leaves_alone(model: Path) -> None:
    found = reasons(model, include=["lm_head.*", "*gamma", "*depthwise*"])
    assert [found[name] for name in ("lm_head.weight", "encoder.gamma", "encoder.depthwise.weight")] == [""] * 3
    assert found["embeddings.word.weight"]


def test_include_cannot_bring_back_what_no_mask_fits(model: Path) -> None:
    assert {name for name, reason in reasons(model, include=["*"]).items() if reason} == {
        "encoder.f32.bias",
        "encoder.quantised.weight",
        "encoder.flags.weight",
        "encoder.layer_norm.weight",
        "encoder.tiny.weight",
        "encoder.nothing.weight",
        "encoder.steps",
    }


def test_exclude_wins_over_include(model: Path) -> None:
    found = reasons(model, include=["*f32*", "lm_head.weight"], exclude=["*.f32.*", "lm*"])
    assert found["encoder.f32.weight"] == "excluded by '*.f32.*'"
    assert found["lm_head.weight"] == "excluded by 'lm*'"


@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_glob_that_matches_nothing(model: Path, argument: str) -> None:
    with pytest.raises(InputValueError, match=rf"{argument} must match the name of a tensor of .*, not 'typo\*'; its"):
        make_plan(model, "2:4", **{argument: ["typo*"]})


@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_globs_in_one_string(model: Path, argument: str) -> None:
    with pytest.raises(InputTypeError, match=rf"{argument} must be a list of globs, not the text '\*'; write \['\*'\]"):
        make_plan(model, "2:4", **{argument: "*"})


def test_pattern_that_no_tensor_can_take(model: Path) -> None:
    plan = make_plan(model, "16:32")
    assert not plan.pruned
    with pytest.raises(PatternError, match=r"pattern must fit at least one weight of .*, not 16:32: the largest, '"):
        plan.check()


def test_rows_only_needs_no_whole_block(model: Path) -> None:
    plan = make_plan(model, Pattern(2, 4, transposable=False))
    assert "encoder.tiny.weight" in {tensor.entry.name for tensor in plan.pruned}


def test_rows_and_columns_of_different_length(model: Path) -> None:
    names = {tensor.entry.name for tensor in make_plan(model, Pattern(row="2:4", col="5:10")).pruned}
    assert names == {"encoder.f32.weight", "encoder.ragged.weight", "encoder.attention.in_proj_weight"}


def test_nothing_to_prune(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", {"lm_head.weight": np.ones((8, 8), "f4"), "b": np.ones(8, "f4")})
    with pytest.raises(
        PatternError, match="must hold a weight that 2:4 can prune, and all 2 tensors are left alone"
    ) as e:
        make_plan(path, "2:4").check()
    assert re.search(r"left alone \(1 x .*, 1 x .*\); nmflow prune --dry-run says more", str(e.value))
    assert "1 x output head (lm_head.*)" in str(e.value)


def test_size_is_no_reason_where_names_or_dtypes_are(tmp_path: Path) -> None:
    """Of a quantised checkpoint only scales are floats, and of an adapter all is small."""
    tensors = {"a.weight": np.ones((64, 64), "i1"), "a.weight_scale": np.ones((64, 1), "f4")}
    path = write(tmp_path / "x.safetensors", {**tensors, "q.lora_E": np.ones((12, 1), "f4")})
    with pytest.raises(PatternError, match=r"1 x dtype I8\).*prune before quantising"):
        make_plan(path, "2:4").check()


@pytest.mark.parametrize(
    ("name", "dtype", "options", "reason"),
    [
        ("a.weight", "f4", {"exclude": ["a*"]}, "1 x excluded by"),
        ("lm_head.weight", "f4", {}, "1 x output head"),
        ("a.weight", "i1", {}, "1 x dtype I8"),
    ],
)
def test_size_is_no_reason_where_larger_ones_are_left_alone(
    tmp_path: Path, name: str, dtype: str, options: dict[str, Any], reason: str
) -> None:
    tensors = {name: np.ones((64, 64), dtype), "b.weight": np.ones((2, 3), "f4")}
    path = write(tmp_path / "x.safetensors", tensors)
    with pytest.raises(PatternError, match=rf"all 2 tensors are left alone \(.*{reason}"):
        make_plan(path, "2:4", **options).check()


def test_what_is_asked_for_can_be_pruned_or_nothing_is(model: Path) -> None:
    make_plan(model, "2:4", include=["encoder.*"]).check()
    make_plan(model, "2:4", include=["encoder.f32*"], exclude=["encoder.f32*"]).check()
    plan = make_plan(model, "2:4", include=["encoder.*", "*bias*"])
    seen = r"include must match a tensor that 2:4 can prune, and '\*bias\*' matches none \(. x 1-D"
    with pytest.raises(InputValueError, match=seen):
        plan.check()


def test_a_convolution_before_the_classifier_is_no_head(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", {"conv_head.weight": np.ones((16, 8, 1, 1), "f4")})
    assert [tensor.entry.name for tensor in make_plan(path, "2:4").pruned] == ["conv_head.weight"]


def test_no_tensor_at_all(tmp_path: Path) -> None:
    path = raw_file(tmp_path / "x.safetensors", {})
    with pytest.raises(PatternError, match="all 0 tensors are left alone"):
        make_plan(path, "2:4").check()
    with pytest.raises(InputValueError, match=r"not '\*'$"):
        make_plan(path, "2:4", include=["*"])


def test_bad_pattern(model: Path) -> None:
    with pytest.raises(PatternError, match='pattern must be "n:m"'):
        make_plan(model, "two of four")


def test_json_of_a_plan(model: Path) -> None:
    plan = json.loads(json.dumps(make_plan(model, "2:4").to_dict()))
    assert plan["pattern"] == "2:4"
    assert len(plan["tensors"]) == len(tensors())
    assert {"glob": "lm_head.*", "reason": "output head"} in plan["default_exclusions"]
    assert {tensor["name"] for tensor in plan["tensors"] if tensor["pruned"]} == set(PRUNED)


# What a checkpoint consists of.


def change_index(folder: Path, **changes: str) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] |= changes
    path.write_text(json.dumps(index))


def test_folder(tmp_path: Path, model: Path) -> None:
    folder = tmp_path / "hf"
    (folder / "sub").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("x")
    shutil.copy(model, folder)
    (folder / "config.json").write_text("{}")
    (folder / "sub" / "model.safetensors").write_text("not read: only the top of the folder is the model")
    source = open_source(folder)
    assert source.is_folder
    assert [shard.path.name for shard in source.shards] == ["model.safetensors"]
    assert [str(path) for path in source.others] == ["config.json", "sub/model.safetensors"]


def test_folder_with_a_file_of_another_name(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    write(tmp_path / "unet" / "diffusion.safetensors")
    assert open_source(tmp_path / "unet").shards[0].path.name == "diffusion.safetensors"


def test_folder_with_files_of_other_names(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors")
    write(tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match=r"must hold model.safetensors, .* not 2 of them; name one file"):
        open_source(tmp_path)


def test_sharded_folder(tmp_path: Path) -> None:
    plan = make_plan(sharded(tmp_path / "hf"), "2:4")
    assert len(plan.source.shards) == 2
    assert {tensor.entry.name for tensor in plan.pruned} == set(PRUNED)
    assert [path.name for path in plan.source.others] == ["model.safetensors.index.json"]


def test_the_index_of_a_part_of_a_pipeline(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "unet")
    index = folder / "model.safetensors.index.json"
    other = index.rename(folder / "diffusion_pytorch_model.safetensors.index.json")
    source = open_source(folder)
    assert (len(source.shards), source.index) == (2, other.name)
    assert {tensor.entry.name for tensor in make_plan(source, "2:4").pruned} == set(PRUNED)
    shutil.copy(other, folder / "second.safetensors.index.json")
    with pytest.raises(CheckpointError, match=r"one index, not diffusion_pytorch_model\.safetensors\.index\.json, sec"):
        open_source(folder)
    shutil.copy(other, index)
    assert open_source(folder).index == index.name


def test_variants_of_a_model(tmp_path: Path) -> None:
    """diffusers and transformers write the name of a variant before the number of a shard, and before json."""
    folder = sharded(tmp_path / "unet")
    index = folder / "model.safetensors.index.json"
    moved = {
        shard: shard.replace("model-", "m.fp16-") for shard in set(json.loads(index.read_text())["weight_map"].values())
    }
    text = index.read_text()
    for old, new in moved.items():
        (folder / old).rename(folder / new)
        text = text.replace(old, new)
    variant = index.rename(folder / "m.safetensors.index.fp16.json")
    variant.write_text(text)
    source = open_source(folder)
    assert (len(source.shards), source.index) == (2, variant.name)
    assert {tensor.entry.name for tensor in make_plan(source, "2:4").pruned} == set(PRUNED)
    write(folder / "m.safetensors")
    write(folder / "m.bf16.safetensors")
    source = open_source(folder)
    assert [shard.path.name for shard in source.shards] == ["m.safetensors"]
    assert {path.name for path in source.other_weights} == {"m.bf16.safetensors", *moved.values()}
    write(folder / "other.safetensors")
    with pytest.raises(CheckpointError, match="not 2 of them; name one file"):
        open_source(folder)


@pytest.mark.parametrize("held", [["00001-of-00002"], ["00001-of-00002", "00002-of-00002"]])
def test_shards_without_their_index_are_no_model(tmp_path: Path, held: list[str]) -> None:
    for part in held:
        write(tmp_path / f"model-{part}.safetensors")
    with pytest.raises(
        CheckpointError, match=r"must hold .*index\.json beside shards as model-00001-of-00002\.safe.*fetch"
    ):
        open_source(tmp_path)
    assert len(open_source(tmp_path / "model-00001-of-00002.safetensors").shards) == 1


def test_the_only_shard_is_the_model(tmp_path: Path) -> None:
    write(tmp_path / "model-00001-of-00001.safetensors")
    assert len(open_source(tmp_path).shards) == 1


def test_weights_in_folders_below_are_named(tmp_path: Path) -> None:
    for name in ("vae", "unet"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "x.safetensors")
    (tmp_path / "snapshots" / "1a2b").mkdir(parents=True)  # as in the cache of Hugging Face
    write(tmp_path / "snapshots" / "1a2b" / "x.safetensors")
    with pytest.raises(CheckpointError, match="holds them in folders; give one of these: snapshots/1a2b, unet, vae"):
        open_source(tmp_path)


@pytest.mark.parametrize("name", ["../out.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "", "a\\b"])
def test_index_that_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    folder = sharded(tmp_path / "hf")
    change_index(folder, evil=name)
    with pytest.raises(CheckpointError, match=re.escape(f"weight_map must name files beside it, not {name!r}")):
        open_source(folder)


def test_index_that_names_a_missing_shard(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "hf")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"must name files that exist, not .model-00002-of-00002.safetensors"):
        open_source(folder)


def test_index_that_names_a_missing_tensor(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "hf")
    change_index(folder, ghost="model-00001-of-00002.safetensors")
    with pytest.raises(CheckpointError, match="weight_map must name tensors that exist, not 'ghost' in 'model-00001"):
        open_source(folder)


def test_tensor_in_two_shards(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "hf")
    write(folder / "model-00002-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"tensor '.*' must be in one shard, not in 'model-00001"):
        open_source(folder)


@pytest.mark.parametrize("text", ["{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_index_without_a_map(tmp_path: Path, text: str) -> None:
    folder = sharded(tmp_path / "hf")
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match="weight_map must map tensor names to file names"):
        open_source(folder)


def test_index_that_is_not_json(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "hf")
    (folder / "model.safetensors.index.json").write_text("<html>")
    with pytest.raises(CheckpointError, match="index must be JSON, not text that cannot be read"):
        open_source(folder)


@pytest.mark.parametrize("suffix", ["bin", "pt", "pth", "ckpt", "pkl"])
def test_pickle_is_refused_with_the_reason_and_the_way_out(tmp_path: Path, suffix: str) -> None:
    name = f"pytorch_model.{suffix}"
    (tmp_path / name).write_bytes(b"\x80\x02")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(CheckpointError, match="reading a pickle runs the code in it") as caught:
            open_source(path)
        command, files = str(caught.value).split('python -c "')[1].split('" ')
        compile(command, "conversion", "exec")
        assert files.split() == [str(tmp_path / "model.safetensors"), str(tmp_path / name)]
        assert "weights_only=True" in command


def test_pickles_of_one_checkpoint_are_converted_together(tmp_path: Path) -> None:
    for name in ("optimizer.pt", "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"):
        (tmp_path / name).write_bytes(b"\x80\x02")
    with pytest.raises(CheckpointError, match=r"pytorch_model-00001-of-00002.bin must be safetensors") as caught:
        open_source(tmp_path)
    assert str(caught.value).endswith(f" {tmp_path / 'pytorch_model'}-*-of-00002.bin")


@pytest.mark.parametrize("name", ["none", "none.safetensors", "none.bin"])
def test_missing_source(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceNotFoundError, match=f"{name} must exist; check the path"):
        open_source(tmp_path / name)


def test_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        CheckpointError, match=r"must hold safetensors, for example model.safetensors, and it holds none"
    ):
        open_source(tmp_path)


def test_links_are_followed_as_in_a_cache_of_downloads(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    write(blobs / "0123")
    (blobs / "more").mkdir()
    (blobs / "more" / "a.txt").write_text("a")
    (snapshot / "model.safetensors").symlink_to("../blobs/0123")
    (snapshot / "more").symlink_to("../blobs/more")
    (snapshot / "again").symlink_to("../blobs/more")
    source = open_source(snapshot)
    assert source.shards[0].path.name == "model.safetensors"
    assert [str(path) for path in source.others] == ["again/a.txt", "more/a.txt"]


def test_links_out_of_a_folder_are_named(tmp_path: Path) -> None:
    """What they lead to would be published with the result; a snapshot of Hugging Face's cache is nothing but links."""
    (home := tmp_path / "id_rsa").write_text("mine")
    (snapshot := tmp_path / "models" / "snapshots" / "0").mkdir(parents=True)
    (blob := tmp_path / "models" / "blobs" / "1").parent.mkdir()
    blob.write_text("{}")
    write(snapshot / "model.safetensors")
    for name, place in (("config.json", "../../blobs/1"), ("again.json", "config.json"), ("README.md", home)):
        (snapshot / name).symlink_to(place)
    assert open_source(snapshot).links_out == (Path("README.md"),)
    done = CliRunner().invoke(app, ["prune", str(snapshot), str(tmp_path / "out"), "--pattern", "2:4", "--dry-run"])
    assert f"\nFrom outside of the folder: README.md is a link to {home.resolve()}\n" in done.stdout
    assert done.stdout.count("is a link to") == 1


def test_link_to_a_folder_above(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors")
    (tmp_path / "loop").symlink_to(".")
    with pytest.raises(CheckpointError, match="must not be a link to a folder above it"):
        open_source(tmp_path)


def test_link_to_nothing(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors")
    (tmp_path / "config.json").symlink_to("gone")
    with pytest.raises(CheckpointError, match="must be a file, not a link to nothing"):
        open_source(tmp_path)


def test_pipe_in_a_folder(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="must be a file or folder, not a device, pipe or socket"):
        open_source(tmp_path)


def test_broken_shard_is_named(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "hf")
    raw_file(folder / "model-00002-of-00002.safetensors", {"w": entry("F32", [9], 0, 36)}, b"")
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002.safetensors: tensor 'w' must end within the file"):
        open_source(folder)
