"""The recipe language: MergeKit's YAML, read strictly."""

from merganser.recipe.document import Document as Document
from merganser.recipe.document import key_name as key_name
from merganser.recipe.loading import Config as Config
from merganser.recipe.loading import ParsedRecipe as ParsedRecipe
from merganser.recipe.loading import Strictness as Strictness
from merganser.recipe.loading import has_block as has_block
from merganser.recipe.loading import invalid as invalid
from merganser.recipe.loading import is_sweep as is_sweep
from merganser.recipe.loading import json_schema as json_schema
from merganser.recipe.loading import load as load
from merganser.recipe.loading import load_all as load_all
from merganser.recipe.loading import model_references as model_references
from merganser.recipe.loading import read_documents as read_documents
from merganser.recipe.loading import validate as validate
from merganser.recipe.references import ModelReference as ModelReference
from merganser.recipe.references import exists as exists
from merganser.recipe.references import parse_reference as parse_reference
from merganser.recipe.schema import ModelInput as ModelInput
from merganser.recipe.schema import OutputSlice as OutputSlice
from merganser.recipe.schema import Recipe as Recipe
from merganser.recipe.schema import SliceSource as SliceSource
from merganser.recipe.settings import Rule as Rule
from merganser.recipe.settings import Scalar as Scalar
from merganser.recipe.settings import Setting as Setting
from merganser.recipe.settings import parse_setting as parse_setting
