"""What may stay of a DICOM header: technical facts by name, numbers as numbers, and words of the standard; nothing else.

It follows the Basic Application Level Confidentiality Profile (PS3.15 E.2) with the option of modified dates (E.3.6), and is
stricter: the profile names what is to go, this names what may stay, so that what nobody thought of goes. The letters in the
comments are the actions of its table E.1-1: K kept, Z emptied, D replaced by a dummy, U another UID, X removed (all the rest).
"""

import functools
import itertools
import re
from collections.abc import Iterable
from typing import Any

from pydicom.datadict import dictionary_VM, dictionary_VR
from pydicom.sr.codedict import Collection
from pydicom.sr.coding import Code


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


NUMBERS = _words(
    # how pixels are stored, and what their values mean
    "SamplesPerPixel PlanarConfiguration NumberOfFrames Rows Columns BitsAllocated BitsStored HighBit PixelRepresentation "
    "PixelAspectRatio SmallestImagePixelValue LargestImagePixelValue SmallestPixelValueInSeries LargestPixelValueInSeries "
    "PixelPaddingValue PixelPaddingRangeLimit RescaleSlope RescaleIntercept WindowCenter WindowWidth LUTDescriptor "
    "RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor BluePaletteColorLookupTableDescriptor "
    "DoseGridScaling LossyImageCompressionRatio PixelIntensityRelationshipSign MaximumFractionalValue SegmentNumber "
    "ReferencedSegmentNumber RealWorldValueFirstValueMapped RealWorldValueLastValueMapped RealWorldValueSlope "
    "RealWorldValueIntercept "
    # where they lie
    "PixelSpacing ImagerPixelSpacing NominalScannedPixelSpacing SliceThickness SpacingBetweenSlices SliceLocation "
    "ImagePositionPatient ImageOrientationPatient GridFrameOffsetVector GantryDetectorTilt TableHeight ReconstructionDiameter "
    "DataCollectionDiameter DistanceSourceToDetector DistanceSourceToPatient EstimatedRadiographicMagnificationFactor "
    "PositionerPrimaryAngle PositionerSecondaryAngle NumberOfDetectors NumberOfEnergyWindows "
    # in what order
    "InstanceNumber SeriesNumber AcquisitionNumber EchoNumbers ImagesInAcquisition TemporalPositionIdentifier "
    "NumberOfTemporalPositions TemporalPositionIndex InStackPositionNumber FrameAcquisitionNumber DimensionIndexValues "
    "DimensionIndexPointer FunctionalGroupPointer FrameIncrementPointer NumberOfSlices NumberOfTimeSlices ImageIndex "
    "FrameTime FrameTimeVector CineRate RecommendedDisplayFrameRate FrameReferenceTime ActualFrameDuration TriggerTime "
    # X-rays
    "KVP XRayTubeCurrent ExposureTime Exposure FocalSpots GeneratorPower SpiralPitchFactor SingleCollimationWidth "
    "TotalCollimationWidth TableSpeed TableFeedPerRotation RevolutionTime BodyPartThickness CompressionForce "
    # magnetic resonance
    "RepetitionTime EchoTime InversionTime FlipAngle MagneticFieldStrength EchoTrainLength NumberOfAverages ImagingFrequency "
    "PercentSampling PercentPhaseFieldOfView PixelBandwidth NumberOfPhaseEncodingSteps AcquisitionMatrix SAR dBdt "
    "EffectiveEchoTime DiffusionBValue DiffusionGradientOrientation "
    # nuclear medicine
    "DecayFactor DoseCalibrationFactor ScatterFractionFactor SliceSensitivityFactor EnergyWindowLowerLimit "
    "EnergyWindowUpperLimit RadionuclideTotalDose RadionuclideHalfLife RadionuclidePositronFraction "
    # regions of ultrasound
    "RegionSpatialFormat RegionDataType RegionFlags RegionLocationMinX0 RegionLocationMinY0 RegionLocationMaxX1 "
    "RegionLocationMaxY1 ReferencePixelX0 ReferencePixelY0 PhysicalUnitsXDirection PhysicalUnitsYDirection "
    "ReferencePixelPhysicalValueX ReferencePixelPhysicalValueY PhysicalDeltaX PhysicalDeltaY TransducerFrequency "
    "UltrasoundColorDataPresent"
)
"""K: where they are numbers, no more than the standard allows, and of at most `MAX_DIGITS` digits before the point."""

MAX_DIGITS = 6
"""Of a number written as text: longer ones may be numbers of patients, or dates."""

_LARGE = _words(
    "RescaleSlope RescaleIntercept WindowCenter WindowWidth RadionuclideTotalDose FrameReferenceTime ActualFrameDuration"
)

_ORIENTATIONS = " ".join("".join(letters) for n in (1, 2, 3) for letters in itertools.permutations("APRLHF", n))
_TERMS = {
    "Modality": "AR AU BDUS BI BMD CR CT CTPROTOCOL DG DX ECG ES GM IO IVOCT IVUS KER LEN LS MG MR NM OAM OCT OP OPM OPT "
    "OPTBSV OPTENF OPV OSS OT PA POS PT PX RF RG RTDOSE RTIMAGE SC SEG SM SRF TG US VA XA XC",
    "ImageType": "ORIGINAL DERIVED PRIMARY SECONDARY AXIAL LOCALIZER MPR REFORMATTED AVERAGE OTHER M P R I FFE SE M_FFE M_SE "
    "IR M_IR PHASE MAGNITUDE ADC DIFFUSION TRACEW FA MOSAIC NORM DIS2D DIS3D ND MIP PROJECTION IMAGE MIXED NONE VOLUME "
    "RESAMPLED STATIC DYNAMIC GATED TOMO RECON EMISSION TRANSMISSION EPI SUBTRACTION T1 T2 T2_STAR T1_MAP T2_MAP PERFUSION "
    "WATER FAT IN_PHASE OUT_OF_PHASE CSA SCREENSHOT SINGLE BIPLANE QUANTITY",
    "PhotometricInterpretation": "MONOCHROME1,MONOCHROME2,PALETTE COLOR,RGB,YBR_FULL,YBR_FULL_422,YBR_ICT,YBR_RCT",
    "RescaleType": "HU OD US MGML Z_EFF ED EDW HU_MOD PCT",
    "ModalityLUTType": "HU OD US MGML Z_EFF ED EDW HU_MOD PCT",
    "VOILUTFunction": "LINEAR LINEAR_EXACT SIGMOID",
    "PresentationLUTShape": "IDENTITY INVERSE",
    "PresentationIntentType": "FOR PRESENTATION,FOR PROCESSING",
    "PixelIntensityRelationship": "LIN LOG DISP",
    "PixelPresentation": "COLOR MONOCHROME MIXED TRUE_COLOR COLOR_RANGE",
    "LossyImageCompression": "00 01",
    "LossyImageCompressionMethod": "ISO_10918_1 ISO_14495_1 ISO_15444_1 ISO_15444_15 ISO_13818_2 ISO_14496_10 ISO_23008_2",
    "BurnedInAnnotation": "YES NO",
    "RecognizableVisualFeatures": "YES NO",
    "ConversionType": "DV DI DF WSD SD SI DRW SYN",
    "SegmentationType": "BINARY FRACTIONAL LABELMAP",
    "SegmentAlgorithmType": "AUTOMATIC SEMIAUTOMATIC MANUAL",
    "SegmentationFractionalType": "PROBABILITY OCCUPANCY",
    "DimensionOrganizationType": "3D 3D_TEMPORAL TILED_FULL TILED_SPARSE",
    "PatientPosition": "HFP HFS HFDR HFDL FFDR FFDL FFP FFS LFP LFS RFP RFS AFDR AFDL PFDR PFDL SITTING",
    "PatientOrientation": _ORIENTATIONS,
    "Laterality": "L R U B",
    "ImageLaterality": "L R U B",
    "FrameLaterality": "L R U B",
    "ViewPosition": "AP PA LL RL RLD LLD RLO LLO CC MLO ML LM LMO XCCL XCCM FB SIO CV AT LATERAL LAT",
    "BodyPartExamined": "ABDOMEN ABDOMENPELVIS ANKLE ARM AXILLA BLADDER BRAIN BREAST BRONCHUS CALCANEUS CEREBELLUM CHEST "
    "CHESTABDOMEN CHESTABDPELVIS CLAVICLE COCCYX COLON CORNEA CSPINE CTSPINE ELBOW ESOPHAGUS EXTREMITY EYE FACE FEMUR FINGER "
    "FOOT FOREARM GALLBLADDER HAND HEAD HEADNECK HEART HIP HUMERUS IAC JAW KIDNEY KNEE LEG LIVER LSPINE LUMBARSPINE LUNG "
    "MAXILLA MANDIBLE NECK NOSE ORBIT OVARY PANCREAS PAROTID PATELLA PELVIS PROSTATE RECTUM RETINA RIB SCAPULA SCROTUM "
    "SHOULDER SKULL SPINE SPLEEN SSPINE STERNUM STOMACH TESTIS THIGH THORAX THUMB THYROID TMJ TOE TRACHEA TSPINE URETER "
    "URETHRA UTERUS WHOLEBODY WRIST ZYGOMA",
    "ScanningSequence": "SE IR GR EP RM",
    "SequenceVariant": "SK MTC SS TRSS SP MP OSP NONE",
    "ScanOptions": "PER RG CG PPG FC PFF PFP SP FS CT",
    "MRAcquisitionType": "2D 3D",
    "AngioFlag": "Y N",
    "InPlanePhaseEncodingDirection": "ROW COL COLUMN OTHER",
    "FrameType": "ORIGINAL DERIVED PRIMARY AXIAL LOCALIZER VOLUME NONE MIXED OTHER DIFFUSION PERFUSION T1 T2 T2_STAR",
    "VolumetricProperties": "VOLUME SAMPLED DISTORTED MIXED",
    "VolumeBasedCalculationTechnique": "NONE MAX_IP MIN_IP MPR CURVED_MPR VOLUME_RENDER SURFACE_RENDER MIXED",
    "ComplexImageComponent": "MAGNITUDE PHASE REAL IMAGINARY MIXED",
    "AcquisitionContrast": "DIFFUSION FLOW_ENCODED FLUID_ATTENUATED PERFUSION PROTON_DENSITY STIR TAGGING T1 T2 T2_STAR TOF "
    "UNKNOWN MIXED",
    "ContentQualification": "PRODUCT RESEARCH SERVICE",
    "DiffusionDirectionality": "DIRECTIONAL BMATRIX ISOTROPIC NONE",
    "RotationDirection": "CW CC",
    "Units": "CNTS NONE CM2 CM2ML PCNT CPS BQML MGMINML UMOLMINML MLMING MLG 1CM UMOLML PROPCNTS PROPCPS MLMINML MLML GML "
    "STDDEV",
    "DecayCorrection": "NONE START ADMIN",
    "CorrectedImage": "DECY ATTN SCAT DTIM MOTN PMOT CLN RAN RADL DCAL NORM",
    "CountsSource": "EMISSION TRANSMISSION",
    "SeriesType": "STATIC,DYNAMIC,GATED,WHOLE BODY,IMAGE,REPROJECTION",
    "RandomsCorrectionMethod": "NONE DLYD SING",
    "RadiationSetting": "SC GR",
    "PositionerType": "CARM COLUMN MAMMOGRAPHIC PANORAMIC CEPHALOSTAT RIGID NONE",
    "OrganExposed": "BREAST",
    "DoseUnits": "GY RELATIVE",
    "DoseType": "PHYSICAL EFFECTIVE ERROR",
    "DoseSummationType": "PLAN MULTI_PLAN PLAN_OVERVIEW FRACTION BEAM BRACHY FRACTION_SESSION BEAM_SESSION CONTROL_POINT",
}
TERMS = {keyword: frozenset(terms.split("," if "," in terms else None)) for keyword, terms in _TERMS.items()}
"""K: coded words that stay where they are the standard's; of several values another word becomes OTHER."""

DATES = _words(
    "StudyDate SeriesDate AcquisitionDate ContentDate AcquisitionDateTime FrameAcquisitionDateTime FrameReferenceDateTime"
)
"""Dates that are moved, by the same days for all of a patient; their times of day go."""

EMPTIED = _words(
    "AccessionNumber ReferringPhysicianName PatientBirthDate PatientSex StudyID StudyTime AcquisitionTime "
    "PositionReferenceIndicator AcquisitionContextSequence ContentCreatorName ContentDescription OperatorsName CollimatorType "
    "DetectorType DetectorInformationSequence CountsAccumulated"
)
"""Z: the standard wants them, if only empty."""

DUMMY = "REMOVED"
DUMMIES = {
    "Manufacturer": DUMMY,
    "ManufacturerModelName": DUMMY,
    "DeviceSerialNumber": DUMMY,
    "SoftwareVersions": DUMMY,
    "ContentLabel": DUMMY,
    "SegmentLabel": DUMMY,
    "SegmentAlgorithmName": DUMMY,
    "LUTLabel": DUMMY,
    "LUTExplanation": DUMMY,
    "ContentTime": "000000",
    "SeriesTime": "000000",
}
"""D: the standard wants a value."""

SEQUENCES = _words(
    "SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence PixelMeasuresSequence PlanePositionSequence "
    "PlaneOrientationSequence PixelValueTransformationSequence FrameVOILUTSequence FrameContentSequence ModalityLUTSequence "
    "VOILUTSequence DimensionOrganizationSequence DimensionIndexSequence SequenceOfUltrasoundRegions MRImageFrameTypeSequence "
    "CTImageFrameTypeSequence MREchoSequence MRTimingAndRelatedParametersSequence MRDiffusionSequence "
    "DiffusionGradientDirectionSequence RadiopharmaceuticalInformationSequence EnergyWindowRangeSequence "
    "EnergyWindowInformationSequence ReferencedImageSequence SourceImageSequence DerivationImageSequence FrameAnatomySequence "
    "SegmentSequence SegmentIdentificationSequence RealWorldValueMappingSequence"
)
"""Their items are treated as the header is."""

CODES = _words(
    "AnatomicRegionSequence PrimaryAnatomicStructureSequence ViewCodeSequence ViewModifierCodeSequence DerivationCodeSequence "
    "PurposeOfReferenceCodeSequence PatientOrientationCodeSequence PatientGantryRelationshipCodeSequence "
    "RadionuclideCodeSequence RadiopharmaceuticalCodeSequence MeasurementUnitsCodeSequence "
    "SegmentedPropertyCategoryCodeSequence SegmentedPropertyTypeCodeSequence"
)
"""K: of their items, the codes of the standard's own dictionary stay, in its words."""

_SCHEMES = ("SCT", "DCM", "UCUM")

TABLES = {
    "LUTData": "LUTDescriptor",
    "RedPaletteColorLookupTableData": "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableData": "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableData": "BluePaletteColorLookupTableDescriptor",
}
"""K: lookup tables, cut to the length that their descriptor says."""

ESSENTIAL = _words(
    "PhotometricInterpretation PlanarConfiguration BitsStored HighBit PixelRepresentation RescaleSlope RescaleIntercept "
    "DoseGridScaling PixelSpacing ImagePositionPatient ImageOrientationPatient GridFrameOffsetVector "
    "SegmentedRedPaletteColorLookupTableData SegmentedGreenPaletteColorLookupTableData SegmentedBluePaletteColorLookupTableData"
) | frozenset(TABLES)
"""Without these the pixels would mean something else: a file in which they cannot stay is refused."""

_DECIMAL = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_WHOLE = re.compile(r"[+-]?\d+")


def allowed(keyword: str, values: list[Any]) -> list[Any] | None:
    """What may stay of the values of a number or a coded word; None where nothing may.

    Args:
        keyword: in `NUMBERS` or `TERMS`.
        values: as pydicom gives them.
    """
    most = dictionary_VM(keyword).rpartition("-")[2]
    if not values or (most.isdecimal() and len(values) > int(most)):
        return None
    if keyword in NUMBERS:
        return values if all(_number(keyword, value) for value in values) else None
    words = [_text(value) for value in values]
    known = [word for word in words if word in TERMS[keyword]]
    return [word if word in known else "OTHER" for word in words] if known else None


def _number(keyword: str, value: Any) -> bool:
    kind = dictionary_VR(keyword)
    if kind not in ("DS", "IS"):
        return isinstance(value, float if kind in ("FL", "FD") else int)
    text = _text(value)
    whole = re.split("[.eE]", text.lstrip("+-"))[0]
    return bool((_DECIMAL if kind == "DS" else _WHOLE).fullmatch(text)) and (len(whole) <= MAX_DIGITS or keyword in _LARGE)


@functools.lru_cache(maxsize=1024)
def coded(scheme: str, value: str) -> tuple[str, str, str] | None:
    """Scheme, value and meaning of a code as the standard has them now: the older codes of SNOMED become others. Or None."""
    code = Code(value, scheme, "")
    known = next((known for known in _codes() if known == code), None)
    return (known.scheme_designator, known.value, known.meaning) if known else None


@functools.cache
def _codes() -> list[Code]:
    return [code for scheme in _SCHEMES for code in Collection(scheme).concepts.values()]


def _text(value: Any) -> str:
    return str(value).strip(" \0")


def names() -> Iterable[str]:
    """All keywords of which something may stay, UIDs aside."""
    return itertools.chain(NUMBERS, TERMS, DATES, EMPTIED, DUMMIES, SEQUENCES, CODES, TABLES)
